"""Maps on disk: safetensors with the fit's description as metadata, written atomically."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], kind: str, info: FitInfo, settings: Mapping[str, Any]
) -> None:
    """Write to a temporary file next to the target, then rename it: a killed run leaves no incomplete map."""
    # One entry: safetensors writes several in arbitrary order, and equal maps must give equal bytes.
    about = {"format": FORMAT, "kind": kind, "info": info.to_dict()} | (
        {"settings": settings} if settings else {}
    )
    kept = {name: part.detach().cpu().contiguous() for name, part in tensors.items()}
    write_bytes(path, save(kept, {KEY: json.dumps(about, sort_keys=True)}))


@dataclass(frozen=True)
class StoredMap:
    """The parts of a stored map, whose tensors are yet to be checked against its kind."""

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    info: FitInfo

    def check(self, shapes: Mapping[str, str], optional: frozenset[str]) -> None:
        """Raise a RunFolderError unless all tensors are there, of these shapes, of one dtype, without NaN."""
        sizes: dict[str, int] = {}
        complete = set(shapes) - optional <= set(self.tensors) <= set(shapes)
        fitting = complete and all(
            _fits(part, shapes[name].split(), sizes) for name, part in sorted(self.tensors.items())
        )
        plain = len({part.dtype for part in self.tensors.values()}) == 1 and all(
            part.dtype in DTYPES and not bool(part.isnan().any()) for part in self.tensors.values()
        )
        if not (fitting and plain and sizes.get("d")):
            parts = ", ".join(
                f"{name} {list(part.shape)} {part.dtype}" for name, part in self.tensors.items()
            )
            raise RunFolderError(
                f"{self.path} holds tensors that do not form a map ({quoted(parts)}): write it again."
            )


def _fits(part: Tensor, shape: Sequence[str], sizes: dict[str, int]) -> bool:
    """Whether a tensor has that shape, with the sizes that other tensors have given its dimensions."""
    if part.ndim != len(shape):
        return False
    named = zip(shape, part.shape, strict=True)
    return all(
        size == (int(name) if name.isdigit() else sizes.setdefault(name, size)) for name, size in named
    )


def read_map(path: Path) -> StoredMap:
    """The tensors and description of a stored map."""
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
    kind, settings = about.get("kind", "nothing"), about.get("settings", {})
    if about.get("format") != FORMAT or not isinstance(kind, str) or not isinstance(settings, dict):
        raise RunFolderError(f"{path} is not a stored map ({FORMAT}) but {quoted(kind)}.")
    return StoredMap(path, kind, tensors, settings, FitInfo.from_dict(about.get("info")))


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        found = from_json(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
