"""What a capture depends on, as JSON: two captures with equal keys hold the same numbers."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ot_lens.activations.positions import labels
from ot_lens.activations.settings import CaptureSettings
from ot_lens.models import model_record
from ot_lens.prompts import Contrast
from ot_lens.transport import AffineMap

# Where a model runs changes only rounding: a capture may continue on another machine.
PLACES = ("device_map",)


def capture_key(
    model: Any,
    prompts: Contrast,
    settings: CaptureSettings,
    layers: tuple[int, ...],
    positions: tuple[int, ...],
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """The key of a capture, with resolved layers, positions and dtype.

    It includes the batching, because shards are batches and sums depend on padding.
    """
    record = {name: value for name, value in model_record(model).items() if name not in PLACES}
    resolved = {
        "layers": list(layers),
        "hook": settings.hook,
        "positions": list(labels(positions, settings.reduce)),
        "averaged": None if settings.reduce is None else list(positions),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "batch_size": settings.batch_size,
        "token_budget": settings.token_budget,
    }
    key: dict[str, Any] = {
        "model": record.pop("name"),
        "d_model": record.pop("d_model"),
        "prompts": prompts.sha256,
        **{f"model_{name}": value for name, value in record.items()},
        **{name: value for name, value in resolved.items() if value is not None},
    }
    if settings.edits:
        sites = sorted(settings.edits.items(), key=lambda item: str(item[0]))
        key["edits"] = [[str(site), _digest(edit)] for site, edit in sites]
        key["tokens"] = settings.tokens
    return key


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of the entries in which two keys differ, in alphabetical order."""
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def _digest(edit: Any) -> str:
    """Hash of every tensor of a map, in the order of its fields."""
    digest = hashlib.sha256()
    for entry in fields(edit):
        part = getattr(edit, entry.name)
        if isinstance(part, Tensor):
            digest.update(part.detach().double().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, AffineMap):
            digest.update(_digest(part).encode())
        digest.update(b"|")
    return digest.hexdigest()
