"""What single coordinates hold: massive activations, and distances and PCA without rogue coordinates."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.errors import OtLensError, one_of
from ot_lens.geometry.quantities import COLUMNS, SHARE, Quantity, row
from ot_lens.geometry.resampled_moments import LABELS, DrawnClasses, PooledGram, Values, by_chunks
from ot_lens.linalg import EPS, Pooled, centred, gram_spectrum, mean_gap, one_thread
from ot_lens.samples import FIRST, LayerSamples, checked_layer, each_layer, resolve_position
from ot_lens.statistics.estimates import Estimate, mean, ratio_of_sums, share, unknown
from ot_lens.statistics.resampling import ResamplingPlan

# Sun et al. 2024: a magnitude above 100 and at least a thousand times the median of its hidden state.
MASSIVE, TIMES = 100.0, 1000.0
# Of a rogue coordinate; ours, an order of magnitude below theirs and without an absolute threshold.
ROGUE = 100.0
NONE, EXCLUDE, SCALE = "none", "exclude", "scale"
UNITS = {NONE: "activation²", EXCLUDE: "activation²", SCALE: "standard deviations²"}
KEYS = ("layer", "position", "robust", "class", "coordinate")


@dataclass(frozen=True)
class RobustSamples:
    """Activations in which no single coordinate decides; anything that takes activations takes these.

    Attributes:
        samples: The activations.
        how: "exclude": rogue coordinates are zero; "scale": each coordinate is divided by its standard
            deviation over both classes, so that distances no longer depend on the units of any.
        ratio: What makes a coordinate rogue, see `massive_activations`.
    """

    samples: LayerSamples
    how: str
    ratio: float

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers captured."""
        return self.samples.layers

    @property
    def positions(self) -> tuple[int | str, ...]:
        """Token positions captured."""
        return self.samples.positions

    @property
    def hook(self) -> str:
        """Name of the hook point."""
        return self.samples.hook

    @property
    def info(self) -> dict[str, Any]:
        """The info of the activations, with `robust`, `ratio` and, of excluded ones, `coordinates`."""
        known = {**getattr(self.samples, "info", {}), "robust": self.how, "ratio": self.ratio}
        sites = [(layer, at) for layer in self.layers for at in self.positions if self.how == EXCLUDE]
        rogue = {site: _rogue(*checked_layer(self.samples, *site), self.ratio) for site in sites}
        return known | ({"coordinates": rogue} if rogue else {})

    def harmful(self, layer: int, position: int | str | None = None) -> Float64[Tensor, "n_H d"]:
        """Samples of the source class."""
        return self._treated(layer, position)[0]

    def harmless(self, layer: int, position: int | str | None = None) -> Float64[Tensor, "n_S d"]:
        """Samples of the target class."""
        return self._treated(layer, position)[1]

    def _treated(self, layer: int, position: int | str | None) -> tuple[Tensor, Tensor]:
        H, S = checked_layer(self.samples, layer, resolve_position(self.samples, position))
        return _treated(H, S, self.how, _rogue(H, S, self.ratio))


def robust_samples(acts: LayerSamples, how: str = EXCLUDE, *, ratio: float = ROGUE) -> RobustSamples:
    """Activations for geometry in which no single coordinate decides, named in their `info`.

    Which coordinates are rogue, and how widely each spreads, is decided without the labels, so that nulls
    under permuted labels stay exact. For reading only: a map fitted on scaled samples does not fit the model.

    Args:
        acts: Activations of both classes.
        how: "exclude" or "scale", see `RobustSamples`.
        ratio: What makes a coordinate rogue, see `massive_activations`.

    Raises:
        OtLensError: An unknown `how`, or a ratio that is not above 1.
    """
    one_of("robust", how, (EXCLUDE, SCALE), OtLensError)
    return RobustSamples(acts, how, _checked(ratio))


def massive_activations(
    acts: LayerSamples,
    *,
    ratio: float = ROGUE,
    position: int | str | None = None,
    permutations: int = 200,
    bootstrap: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """What single coordinates hold of norms, of the distance between the classes and of their variance.

    Of each class, means over prompts, with `coordinate` the one of the largest mean magnitude: `norm`;
    `largest` (its magnitude), `median_ratio` (over the median magnitude of the same hidden state),
    `norm_share` (of the squared norm); and `massive_share`, the share of prompts with a massive activation: a
    magnitude above 100 and at least 1000 times that median (Sun et al. 2024, arXiv 2402.17762).

    Of both classes, except at position "first", where a causal model has not read the prompt yet:
    `rogue_coordinates`, how many coordinates are on average at least `ratio` times the median (compare
    Timkey & van Schijndel 2021, arXiv 2109.04404), and the `rogue_ratio` of each. Then with all coordinates
    (`robust` "none"), without the rogue ones ("exclude") and with all in units of their standard deviation
    ("scale"): `w2_squared`, as in `diagnose`; `w2_share`, the largest share of it that one coordinate has
    (the optimal coupling's mean squared difference of that coordinate; over all coordinates they add to
    W2^2); `pc1_share` and `variance_share`, the shares of the pooled variance that the first principal
    component and the coordinate that varies most have. The interval of a share is that of this coordinate or
    component, as if it had been chosen beforehand.

    Args:
        acts: Activations of both classes.
        ratio: What makes a coordinate rogue, at least this many times the median magnitude.
        position: One token position; all captured ones when None.
        permutations: Relabellings of the null of `w2_squared`; 0 for none.
        bootstrap: Resamples of the intervals of `w2_squared` and `w2_share`; 0 for none.
        seed: Seed of the draws.

    Returns:
        Columns layer, position, robust, class ("both" for quantities of both), coordinate (missing for
        quantities of none), quantity, value, n, null_mean, null_low, null_high, low, high, unit. Ratios to a
        median of zero and shares of nothing are NaN, and a coordinate without a ratio is not rogue.

    Raises:
        ActivationError: Samples that cannot be used; the message names the layer.
        OtLensError: A negative number of draws, or a ratio that is not above 1.
    """
    plan, rows = ResamplingPlan(permutations, bootstrap, seed), list[dict[str, Any]]()
    _checked(ratio)
    for keys, H, S in each_layer(acts, position):
        for label, X in zip(LABELS, (H, S), strict=True):
            rows += _of_class({**keys, "robust": NONE, "class": label}, X, seed)
        if keys["position"] != FIRST:
            rows += _of_both({**keys, "class": "both"}, H, S, ratio, plan)
    return pd.DataFrame(rows, columns=[*KEYS, *COLUMNS]).astype({"coordinate": "Int64"})


def _checked(ratio: float) -> float:
    if not ratio > 1:
        raise OtLensError(f"ratio must be above 1 (times the median magnitude), got {ratio}.")
    return ratio


def _of_class(keys: Mapping[str, Any], X: Float64[Tensor, "n d"], seed: int) -> Iterator[dict[str, Any]]:
    magnitudes, ratios, norms = X.abs(), _ratios(X), X.norm(dim=1)
    j = int(magnitudes.mean(0).argmax())
    massive = ((magnitudes > MASSIVE) & (ratios >= TIMES)).any(1)
    yield _mean(keys, Quantity("norm", "activation"), norms, seed)
    known = {**keys, "coordinate": j}
    yield _mean(known, Quantity("largest", "activation"), magnitudes[:, j], seed)
    yield _mean(known, Quantity("median_ratio", "ratio"), ratios[:, j], seed)
    yield _mean(known, Quantity("norm_share", "share", SHARE), (magnitudes[:, j] / norms).square(), seed)
    yield _estimated(keys, Quantity("massive_share", "share", SHARE), share(int(massive.sum()), len(X)))


def _of_both(
    keys: Mapping[str, Any],
    H: Float64[Tensor, "n_H d"],
    S: Float64[Tensor, "n_S d"],
    ratio: float,
    plan: ResamplingPlan,
) -> Iterator[dict[str, Any]]:
    rogue, ratios, excluded = _rogue(H, S, ratio), _ratios(torch.cat([H, S])), {**keys, "robust": EXCLUDE}
    count = replace(unknown(len(ratios)), value=float(len(rogue)))
    yield _estimated(excluded, Quantity("rogue_coordinates", "coordinates"), count)
    for j in rogue:
        yield _mean({**excluded, "coordinate": j}, Quantity("rogue_ratio", "ratio"), ratios[:, j], plan.seed)
    rows = list(_decided(keys, NONE, H, S, plan))
    for how in UNITS:
        if how == NONE or (how == EXCLUDE and not rogue):
            yield from ({**entry, "robust": how} for entry in rows)
        else:
            yield from _decided(keys, how, *_treated(H, S, how, rogue), plan)


def _decided(
    keys: Mapping[str, Any],
    how: str,
    H: Float64[Tensor, "n_H d"],
    S: Float64[Tensor, "n_S d"],
    plan: ResamplingPlan,
) -> Iterator[dict[str, Any]]:
    """W2, PCA, and what one coordinate has of them."""
    pooled, labels, keys = Pooled.of(H, S), plan.observed(len(H), len(S)), {**keys, "robust": how}
    gram, costs, squares = PooledGram.of(pooled), coordinate_costs(H, S), pooled.Z.square()
    j, widest, n = int(costs.argmax()), int(squares.sum(0).argmax()), len(squares)
    column = pooled.Z[:, j].cpu()
    draws = labels, plan.relabelled(labels), plan.resampled(labels)
    value, null, resampled = (
        by_chunks(lambda chunk: _coupled(gram.under(chunk), column), of) for of in draws
    )
    value |= {"w2_squared": costs.sum()}  # from singular values, not their squares
    yield row({**keys, "coordinate": None}, Quantity("w2_squared", UNITS[how]), n, (value, null, resampled))
    # No null: the labels chose the coordinate.
    yield row({**keys, "coordinate": j}, Quantity("w2_share", "share", SHARE), n, (value, {}, resampled))
    eigenvalues, vectors = gram_spectrum(pooled.Z)
    leading = eigenvalues[0] * vectors[:, 0].square()
    parts = {"pc1_share": (None, leading), "variance_share": (widest, squares[:, widest])}
    if how == SCALE:
        del parts["variance_share"]  # all coordinates have the same
    for name, (of, part) in parts.items():
        known = ratio_of_sums(part.cpu().numpy(), squares.sum(1).cpu().numpy(), seed=plan.seed)
        yield _estimated({**keys, "coordinate": of}, Quantity(name, "share", SHARE), known)


def coordinate_costs(H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"]) -> Float64[Tensor, " d"]:
    """Mean squared difference of each coordinate in the optimal coupling of both Gaussians; the sum is W2^2.

    With X~ Y~^T = U diag(s) V^T of the centred samples over sqrt(n - 1), the coupling's cross-covariance is
    X~^T U V^T Y~, whose trace is the nuclear norm of `bures`; directions with s = 0 are left independent.
    """
    X, Y = (centred(x)[0] / (len(x) - 1) ** 0.5 for x in (H, S))
    with one_thread():
        U, s, Vh = torch.linalg.svd(X @ Y.T, full_matrices=False)
    shared = s > len(s) * EPS * s[0]
    cross = ((U[:, shared].T @ X) * (Vh[shared] @ Y)).sum(0)
    return (mean_gap(H, S)[0].square() + X.square().sum(0) + Y.square().sum(0) - 2 * cross).clamp_min(0.0)


def _coupled(classes: DrawnClasses, column: Float64[Tensor, " N"]) -> Values:
    """W2^2, and the share of one coordinate in it, under every draw."""
    M, n = classes.cross(), classes.draws.sizes
    x, y = column[classes.draws.source], column[classes.draws.target]
    gap = x.mean(1) - y.mean(1)
    x, y = ((z - z.mean(1, keepdim=True)) / (m - 1) ** 0.5 for z, m in zip((x, y), n, strict=True))
    with one_thread():
        squares, U = torch.linalg.eigh(M @ M.mT)
    s = squares.clamp_min(0.0).sqrt()
    inverse = torch.where(squares > n[0] * EPS * squares[:, -1:], 1 / s, 0.0)
    # x^T U V^T y with V^T = diag(1 / s) U^T M.
    cross = ((U.mT @ x.unsqueeze(2)) * (U.mT @ M @ y.unsqueeze(2))).squeeze(2).mul(inverse).sum(1)
    w2 = (classes.location() + sum(classes.traces()) - 2 * s.sum(1)).clamp_min(0.0)
    cost = gap.square() + x.square().sum(1) + y.square().sum(1) - 2 * cross
    defined = w2.masked_fill(w2 <= classes.rounding, torch.nan)
    return {"w2_squared": w2, "w2_share": (cost / defined).clamp(0.0, 1.0)}


def _ratios(X: Float64[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    """Magnitudes over the (lower) median magnitude of the same hidden state; NaN where that is zero."""
    median = X.abs().median(1, keepdim=True).values
    return X.abs() / median.masked_fill(median == 0, torch.nan)


def _rogue(H: Float64[Tensor, "n_H d"], S: Float64[Tensor, "n_S d"], ratio: float) -> tuple[int, ...]:
    """Coordinates whose mean ratio over both classes is large, the largest first."""
    means = _ratios(torch.cat([H, S])).nanmean(0).nan_to_num(0.0)
    order = means.argsort(descending=True)
    return tuple(order[means[order] >= ratio].tolist())


def _treated(H: Tensor, S: Tensor, how: str, rogue: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    if how == EXCLUDE:
        at = torch.tensor(rogue, dtype=torch.long, device=H.device)
        return H.index_fill(1, at, 0.0), S.index_fill(1, at, 0.0)
    spread = Pooled.of(H, S).Z.square().mean(0).sqrt()
    spread = torch.where(spread > 0, spread, 1.0)
    return H / spread, S / spread


def _mean(keys: Mapping[str, Any], quantity: Quantity, values: Tensor, seed: int) -> dict[str, Any]:
    known = bool(values.isfinite().all())
    found = mean(values.cpu().numpy(), seed=seed, least=0.0) if known else unknown(len(values))
    return _estimated(keys, quantity, found)


def _estimated(keys: Mapping[str, Any], quantity: Quantity, found: Estimate) -> dict[str, Any]:
    """A row without a null."""
    high = min(found.high, quantity.bounds[1]) if found.high == found.high else found.high
    ends = {"value": found.value, "n": found.n, "low": found.low, "high": high}
    return {"coordinate": None, **keys, "quantity": quantity.name, **ends, "unit": quantity.unit}
