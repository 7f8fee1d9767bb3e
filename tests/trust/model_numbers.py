"""Numbers computed with a model, to compare dtypes, batch sizes and libraries.

Run from the repository root in the environment of transformer-lens 4, `python -m tests.trust.model_numbers`
writes tests/data/numbers.json: what each embedded model says in float64, for every environment to compare.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import ot_lens as otl
from ot_lens.prompts import Contrast, ContrastSet

METHODS = [{"name": "pca_ot", "k": 2}, "directional_ablation"]
LAYERS = (5, 7)
FILE = Path(__file__).parent.parent / "data" / "numbers.json"
VARIANTS = ("multi", "single")
PROMPTS = 12
# The largest deviations allowed, at most ten times the largest that were measured. Relative to the layer's
# root mean square: activations, mapped, w2. Absolute: scores (nats), cosines. Table: relative, or to 1 nat.
TOLERANCES = {
    "activations": 1e-5, "scores": 5e-5, "mapped": 1e-5, "w2": 8e-7, "cosines": 1e-7, "table": 1e-4,
}  # fmt: skip


def few(n: int = PROMPTS) -> ContrastSet:
    """The first organism prompts of each class and split."""
    full = otl.load_prompts("organism")
    splits = (full.train, full.val, full.test)
    return ContrastSet(full.name, *(Contrast(tuple(s.harmful[:n]), tuple(s.harmless[:n])) for s in splits))


def numbers_of(model: Any, *, batch_size: int = 64) -> dict[str, Any]:
    """Numbers of a model and the conclusions from them, with maps fitted on `train` and effects on `test`.

    Returns:
        "numbers" as JSON values: activations of both classes before each layer and after a pca_ot map of rank
        2, as projections on two directions of a fixed seed; refusal scores (nats); location and Bures part of
        W2 by layer; cosines between the difference-in-means directions; value, low and high of the rows of
        `localize`, sorted by their key. "conclusions": localized layers by method, refused prompts, and the
        sign of each interval that excludes zero.
    """
    prompts = few()
    acts = otl.capture(model, prompts.train, layers=list(LAYERS), batch_size=batch_size)
    pairs = [(acts.harmful(layer).double(), acts.harmless(layer).double()) for layer in LAYERS]
    distances = [otl.bures_wasserstein(H, S) for H, S in pairs]
    directions = torch.stack([torch.nn.functional.normalize(H.mean(0) - S.mean(0), dim=0) for H, S in pairs])
    requests = [*prompts.test.harmful, *prompts.test.harmless]
    scores = otl.refusal_score(model, requests, batch_size=batch_size).numpy()
    table = otl.localize(
        model, prompts, METHODS, layers=list(LAYERS), sets=("single",), acts=acts, batch_size=batch_size,
        measures=["refusal_score", "kl"], controls=["random_subspace"], control_draws=3, tokens="all",
    )  # fmt: skip
    keys = ["set", "layers", "method", "k", "control", "draw", "measure", "prompts"]
    measured = table[table["measure"] != "out_of_domain_share"]
    rows = measured.sort_values(keys, kind="stable")[["value", "low", "high"]]
    seen = np.random.default_rng(0).standard_normal((pairs[0][0].shape[1], 2)) / np.sqrt(pairs[0][0].shape[1])
    numbers = {
        "activations": torch.stack([torch.cat(pair) for pair in pairs]).numpy() @ seen,
        "scores": scores,
        "mapped": torch.stack([otl.fit_pca_ot(H, S, k=2)(H) for H, S in pairs]).numpy() @ seen,
        "w2": [[w2.location, w2.bures] for w2 in distances],
        "cosines": (directions @ directions.T).numpy(),
        "table": rows.to_numpy(float),
    }
    signs = np.sign(rows["low"]) * (np.sign(rows["low"]) == np.sign(rows["high"]))
    conclusions = {
        "localized": _localized(otl.verdict(table)),
        "intervals": signs.astype(int).tolist(),
        "refused": (scores > 0).tolist(),
    }
    rounded = {name: np.round(values, 9).tolist() for name, values in numbers.items()}
    return {"numbers": rounded, "conclusions": conclusions}


def _localized(found: pd.DataFrame) -> dict[str, list[int]]:
    rows = found[found["localized"].fillna(value=False)]
    return {str(name): sorted(map(int, part)) for name, part in rows["layer"].groupby(rows["method"])}


def deviations(found: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """The largest deviation of each kind of number, as TOLERANCES says."""
    out = {}
    for name, expected in reference["numbers"].items():
        ours, theirs = np.asarray(found["numbers"][name]), np.asarray(expected)
        assert ours.shape == theirs.shape, name
        scale = 1.0
        if name in ("activations", "mapped", "w2"):
            scale = np.sqrt((theirs**2).mean(axis=tuple(range(1, theirs.ndim)), keepdims=True))
        if name == "table":
            scale = np.maximum(np.abs(theirs), 1.0)
        same = np.isnan(ours) & np.isnan(theirs)
        out[name] = float(np.where(same, 0.0, np.abs(ours - theirs) / scale).max())
    return out


def check_numbers(model: Any, variant: str, batch_size: int, record: Any) -> None:
    """The numbers of an embedded model, however it is run, are those of float64 within the tolerances."""
    expected, found = json.loads(FILE.read_text())[variant], numbers_of(model, batch_size=batch_size)
    apart = deviations(found, expected)
    for name, value in apart.items():
        record(f"numerics_{name}", f"{value:.2e}")
    assert {name: value for name, value in apart.items() if value > TOLERANCES[name]} == {}
    assert found["conclusions"] == expected["conclusions"]


if __name__ == "__main__":
    models = {name: otl.load_model(f"organism:{name}", dtype="float64") for name in VARIANTS}
    FILE.write_text(json.dumps({n: numbers_of(m, batch_size=16) for n, m in models.items()}) + "\n")
