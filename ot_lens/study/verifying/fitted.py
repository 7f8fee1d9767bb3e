"""Stored maps compared with maps fitted again on the stored activations, by how they move samples."""

import warnings
from dataclasses import fields, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import PoorFitWarning, RunFolderError
from ot_lens.localization import MethodSpec, fit_maps
from ot_lens.prompts import CLASSES
from ot_lens.study.sweeping import map_folder
from ot_lens.study.verifying.check import Check, Checks, exact, listed, missing
from ot_lens.study.verifying.evidence import Evidence, restricted
from ot_lens.transport import AffineMap

# Relative to the largest displacement: another order of summation changes the 12th digit of a displacement,
# times the condition number of the fit, whose regularized covariances stay below 1e4.
TOLERANCE = 1e-8


def fitted(run: Evidence, checks: Checks) -> None:
    """One check per method: every map exists, and those of the sampled layers move samples the same way."""
    with checks.of("maps", "refitted"):
        layers = few = run.train.layers
        if run.sample is not None:
            few = tuple(sorted(run.choice("maps", layers)[: max(2, run.sample // len(run.methods))]))
        acts = restricted(run.train, few, run.config.position)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PoorFitWarning)
            refitted = fit_maps(acts, run.methods, layers=few, position=run.config.position)
        for method in run.methods:
            checks.append(_check_method(run, method, refitted[method]))
        known = {run.map_path(method, layer) for method in run.methods for layer in layers}
        extra = sorted(set((run.folder.path / "maps").rglob("*.safetensors")) - known)
        if extra:
            names = [str(path.relative_to(run.folder.path)) for path in extra]
            checks.append(
                exact("maps", "configuration", [f"not of this run: {listed(names)}"], 0, len(names))
            )


def _check_method(run: Evidence, method: MethodSpec, refitted: dict[int, AffineMap]) -> Check:
    item, layers = f"maps/{map_folder(method)}", run.train.layers
    lacking = [f"layer {layer}" for layer in layers if not run.map_path(method, layer).is_file()]
    if lacking:
        return missing(item, "refitted", f"no map of {listed(lacking)}", len(layers))
    worst, wrong = 0.0, []
    for layer in layers:
        try:
            stored = AffineMap.load(run.map_path(method, layer))
        except RunFolderError as error:
            wrong.append(str(error))
            continue
        if layer in refitted:
            off = relative_distance(stored, refitted[layer], _samples(run, layer))
            worst = max(worst, off)
            wrong += [f"layer {layer}: {fact}" for fact in _different_facts(stored, refitted[layer])]
            if off > TOLERANCE:
                wrong.append(f"layer {layer} moves samples differently")
    check = exact(item, "refitted", wrong, len(refitted), len(layers))
    return replace(check, deviation=worst, tolerance=TOLERANCE)


def _samples(run: Evidence, layer: int) -> Float64[Tensor, "n d"]:
    return torch.cat([getattr(run.train, label)(layer, run.config.position) for label in CLASSES])


def relative_distance(stored: AffineMap, refitted: AffineMap, samples: Float64[Tensor, "n d"]) -> float:
    """Largest distance between the images of a sample, over the largest displacement by `refitted`."""
    if stored.d_model != refitted.d_model:
        return float("inf")
    ours, theirs = refitted(samples), stored(samples)
    distance = float((theirs - ours).norm(dim=1).max())
    displacement = float((ours - samples).norm(dim=1).max())
    if not distance < float("inf"):
        return float("inf")
    return distance / displacement if displacement else (float("inf") if distance else 0.0)


def _different_facts(stored: AffineMap, refitted: AffineMap) -> list[str]:
    """Facts of the fit that are not equal; measured numbers are left to the comparison of the samples."""
    names = [entry.name for entry in fields(refitted.info) if entry.name not in ("problems", "notes")]
    pairs = [(name, getattr(stored.info, name), getattr(refitted.info, name)) for name in names]
    return [f"its {name} is {old!r}" for name, old, new in pairs if not isinstance(new, float) and old != new]
