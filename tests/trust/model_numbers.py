"""Numbers computed with a model, to compare dtypes, batch sizes and libraries."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import ot_lens as otl
from ot_lens.organism.evaluation import WEIGHTS
from ot_lens.prompts import Contrast, ContrastSet

METHODS = [{"name": "pca_ot", "k": 2}, "directional_ablation"]
LAYERS = (5, 7)
FAR = LAYERS[-1]


def few(name: str = "organism", n: int = 16) -> ContrastSet:
    """The first prompts of each class and split."""
    full = otl.load_prompts(name)
    splits = (full.train, full.val, full.test)
    return ContrastSet(full.name, *(Contrast(tuple(s.harmful[:n]), tuple(s.harmless[:n])) for s in splits))


@dataclass(frozen=True)
class Numbers:
    """Numbers of one model, and the conclusions from them.

    Attributes:
        activations: Stream before each layer at the last token, harmful then harmless: [layer, 2n, d].
        scores: Refusal scores in nats, harmful prompts then harmless.
        mapped: The harmful activations after a fitted pca_ot map of rank 2: [layer, n, d].
        w2: Squared 2-Wasserstein distance between the classes, by layer: location and Bures part.
        cosines: Cosines between the difference-in-means directions of the layers.
        table: Rows of `localize`: value, low, high in nats; sorted by their key.
        localized: Layers that count as localized, by method.
    """

    activations: np.ndarray
    scores: np.ndarray
    mapped: np.ndarray
    w2: np.ndarray
    cosines: np.ndarray
    table: pd.DataFrame
    localized: dict[str, list[int]]

    @property
    def conclusions(self) -> dict[str, Any]:
        """Localized layers, refused prompts, and the sign of each interval that excludes zero."""
        signs = np.sign(self.table["low"]) * (np.sign(self.table["low"]) == np.sign(self.table["high"]))
        refused = (self.scores > 0).tolist()
        return {"localized": self.localized, "intervals": signs.astype(int).tolist(), "refused": refused}

    def summary(self, digits: int = 9) -> dict[str, Any]:
        """The numbers as JSON values; activations as their projections on two directions of a fixed seed."""
        d = self.activations.shape[-1]
        directions = np.random.default_rng(0).standard_normal((d, 2)) / np.sqrt(d)
        found = {
            "activations": self.activations @ directions,
            "scores": self.scores,
            "mapped": self.mapped @ directions,
            "w2": self.w2,
            "cosines": self.cosines,
            "table": self.table[["value", "low", "high"]].to_numpy(float),
        }
        return {name: np.round(values, digits).tolist() for name, values in found.items()}


def numbers_of(model: Any, prompts: ContrastSet, *, batch_size: int = 64, draws: int = 3) -> Numbers:
    """All numbers of a model, with maps fitted on `train` and effects measured on `test`."""
    acts = otl.capture(model, prompts.train, layers=list(LAYERS), batch_size=batch_size)
    harmful, harmless = (
        [getattr(acts, label)(layer).double() for layer in LAYERS] for label in ("harmful", "harmless")
    )
    pairs = list(zip(harmful, harmless, strict=True))
    distances = [otl.bures_wasserstein(H, S) for H, S in pairs]
    directions = torch.stack([torch.nn.functional.normalize(H.mean(0) - S.mean(0), dim=0) for H, S in pairs])
    requests = [*prompts.test.harmful, *prompts.test.harmless]
    table = otl.localize(
        model, prompts, METHODS, layers=list(LAYERS), sets=("single",), acts=acts, batch_size=batch_size,
        measures=["refusal_score", "kl"], controls=["random_subspace"], control_draws=draws,
    )  # fmt: skip
    return Numbers(
        torch.stack([torch.cat(pair) for pair in pairs]).numpy(),
        otl.refusal_score(model, requests, batch_size=batch_size).numpy(),
        torch.stack([otl.fit_pca_ot(H, S, k=2)(H) for H, S in pairs]).numpy(),
        np.array([[w2.location, w2.bures] for w2 in distances]),
        (directions @ directions.T).numpy(),
        _rows(table),
        _localized(otl.verdict(table)),
    )


def _rows(table: pd.DataFrame) -> pd.DataFrame:
    keys = ["set", "layers", "method", "k", "control", "draw", "measure", "prompts"]
    return table.sort_values(keys, kind="stable", ignore_index=True)[[*keys, "value", "low", "high"]]


def _localized(found: pd.DataFrame) -> dict[str, list[int]]:
    rows = found[found["localized"].fillna(value=False)]
    return {str(name): sorted(map(int, part)) for name, part in rows["layer"].groupby(rows["method"])}


def deviations(found: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """The largest deviation of each kind of number; see `Numbers.summary`.

    Activations, mapped activations and distances: relative to the root mean square of the layer. Scores
    (nats) and cosines: absolute. Rows of the table: relative to the number, or to 1 nat if it is smaller (the
    upper end of a divergence of few prompts can be in the thousands).
    """
    out = {}
    for name, expected in reference.items():
        ours, theirs = np.asarray(found[name]), np.asarray(expected)
        if ours.shape != theirs.shape:
            raise ValueError(f"{name}: {ours.shape} numbers against {theirs.shape}")
        scale = 1.0
        if name in ("activations", "mapped", "w2"):
            scale = np.sqrt((theirs**2).mean(axis=tuple(range(1, theirs.ndim)), keepdims=True))
        if name == "table":
            scale = np.maximum(np.abs(theirs), 1.0)
        gap = np.abs(ours - theirs) / scale
        same = np.isnan(ours) & np.isnan(theirs)
        out[name] = float(np.where(same, 0.0, gap).max())
    return out


def weights(variant: str) -> Path:
    """The folder of an embedded model."""
    return Path(WEIGHTS) / variant
