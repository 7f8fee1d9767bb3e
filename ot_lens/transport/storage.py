"""Maps on disk: safetensors with the fit's description as metadata, written atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ot_lens.errors import RunFolderError
from ot_lens.io.files import write_bytes
from ot_lens.io.untrusted import MIB, abbreviated, check_size, quoted
from ot_lens.transport.info import FitInfo

KEY = "ot_lens"
FORMAT = "ot_lens.map/2"
# A map of full rank at width 16,384 in float64.
MOST = 4096 * MIB
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], kind: str, info: FitInfo) -> None:
    """Write to a temporary file next to the target, then rename it: a killed run leaves no incomplete map."""
    # One entry: safetensors writes several in arbitrary order, and equal maps must give equal bytes.
    about = json.dumps({"format": FORMAT, "kind": kind, "info": info.to_dict()}, sort_keys=True)
    kept = {name: part.detach().cpu().contiguous() for name, part in tensors.items()}
    write_bytes(path, save(kept, {KEY: about}))


def read_tensors(path: Path, kind: str, *, required: tuple[str, ...]) -> tuple[dict[str, Tensor], FitInfo]:
    """The tensors and description of a stored map, which must be complete and of that kind."""
    try:
        check_size(path, MOST, RunFolderError)
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} does not exist: save a map there first.") from error
    try:
        with safe_open(path, framework="pt") as stored:
            about = _parsed((stored.metadata() or {}).get(KEY))
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise RunFolderError(
            f"{path} is not a complete safetensors file ({abbreviated(error)}): write it again."
        ) from error
    if about.get("format") != FORMAT or about.get("kind") != kind or not set(required) <= set(tensors):
        raise RunFolderError(
            f"{path} is not a stored {kind} ({FORMAT}) but {quoted(about.get('kind', 'nothing'))}."
        )
    _check_shapes(path, tensors)
    return tensors, FitInfo.from_dict(about.get("info"))


def _check_shapes(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """U and V are [d, k], everything else is [d], all of one floating dtype and without NaN."""
    factors = [part for name, part in tensors.items() if name in ("U", "V")]
    others = [part for name, part in tensors.items() if name not in ("U", "V")]
    d = max((part.numel() for part in others), default=0)
    alike = len({part.dtype for part in tensors.values()}) == 1 and len({part.shape for part in factors}) <= 1
    sound = all(part.ndim == 2 and len(part) == d for part in factors) and all(
        p.shape == (d,) for p in others
    )
    plain = all(part.dtype in DTYPES and not bool(part.isnan().any()) for part in tensors.values())
    if not (d and alike and sound and plain):
        parts = ", ".join(f"{name} {list(part.shape)} {part.dtype}" for name, part in tensors.items())
        raise RunFolderError(
            f"{path} holds tensors that do not form a map ({quoted(parts)}): write it again."
        )


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        found = from_json(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
