"""Stored maps against maps fitted again on the stored activations, compared in what they do."""

import warnings
from collections.abc import Sequence
from dataclasses import fields

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import PoorFitWarning, RunFolderError
from ot_lens.localization import Method, fit_maps
from ot_lens.study.sweeping import map_folder
from ot_lens.study.verifying.check import DIFFERS, MISSING, OK, Check, Checks, listed
from ot_lens.study.verifying.evidence import Evidence, restricted
from ot_lens.transport import AffineMap

# Of the largest displacement: another order of adding shows in the 12th digit of a displacement, times the
# condition of the fit, whose regularized covariances stay below 1e4.
ACTION = 1e-8


def fitted(run: Evidence, checks: Checks) -> None:
    """One check a method: every map is there, and those of the sampled layers move samples alike."""
    with checks.of("maps", "refitted"):
        config, acts = run.config, run.acts("train")
        layers = _sampled(run, acts.layers)
        few = restricted(acts, layers, config.position)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PoorFitWarning)
            again = fit_maps(few, run.methods, layers=layers, position=config.position)
        for method in run.methods:
            checks.add(_method(run, method, again[method], acts.layers))
        checks.add(*_strangers(run, acts.layers))


def _sampled(run: Evidence, layers: Sequence[int]) -> list[int]:
    """As many layers as there are rows to sample, divided among the methods; at least two."""
    if run.sample is None:
        return list(layers)
    count = max(2, run.sample // max(1, len(run.methods)))
    return sorted(run.choice("maps", layers)[:count])


def _method(run: Evidence, method: Method, again: dict[int, AffineMap], layers: Sequence[int]) -> Check:
    item, how = f"maps/{map_folder(method)}", "refitted"
    worst, wrong = 0.0, []
    missing = [f"layer {layer}" for layer in layers if not run.map_path(method, layer).is_file()]
    if missing:
        return Check(item, how, 0, len(layers), verdict=MISSING, note=f"no map of {listed(missing)}")
    for layer in layers:
        try:
            stored = AffineMap.load(run.map_path(method, layer))
        except RunFolderError as error:
            wrong.append(str(error))
            continue
        if layer in again:
            samples = _samples(run, layer)
            off = moved_apart(stored, again[layer], samples)
            worst = max(worst, off)
            wrong += [f"layer {layer}: {name}" for name in _described_otherwise(stored, again[layer])]
            if off > ACTION:
                wrong.append(f"layer {layer} moves samples otherwise")
    verdict = DIFFERS if wrong else OK
    return Check(item, how, len(again), len(layers), worst, ACTION, verdict, listed(wrong))


def _samples(run: Evidence, layer: int) -> Float64[Tensor, "n d"]:
    acts, position = run.acts("train"), run.config.position
    return torch.cat([acts.harmful(layer, position), acts.harmless(layer, position)])


def moved_apart(stored: AffineMap, again: AffineMap, samples: Float64[Tensor, "n d"]) -> float:
    """Largest distance between the two images of a sample, over the largest displacement by the second.

    Args:
        stored: One map.
        again: The map that it should equal.
        samples: What both are applied to.
    """
    if stored.d_model != again.d_model:
        return float("inf")
    ours, theirs = again(samples), stored(samples)
    apart = float((theirs - ours).norm(dim=1).max())
    size = float((ours - samples).norm(dim=1).max())
    if not apart < float("inf"):
        return float("inf")
    return apart / size if size else (float("inf") if apart else 0.0)


def _described_otherwise(stored: AffineMap, again: AffineMap) -> list[str]:
    """Names of the fit's facts that are not equal; what is a measured number is left to the action."""
    return [
        f"its {entry.name} is {getattr(stored.info, entry.name)!r}"
        for entry in fields(again.info)
        if not isinstance(getattr(again.info, entry.name), float)
        and entry.name not in ("problems", "notes")
        and getattr(stored.info, entry.name) != getattr(again.info, entry.name)
    ]


def _strangers(run: Evidence, layers: Sequence[int]) -> list[Check]:
    """Files under maps/ that no method of the run has."""
    known = {run.map_path(method, layer) for method in run.methods for layer in layers}
    extra = sorted(set((run.folder.path / "maps").rglob("*.safetensors")) - known)
    names = [str(path.relative_to(run.folder.path)) for path in extra]
    if not names:
        return []
    return [
        Check(
            "maps",
            "configuration",
            0,
            len(names),
            verdict=DIFFERS,
            note=f"not of this run: {listed(names)}",
        )
    ]
