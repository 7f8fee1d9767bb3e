"""Classes with no spread, or hardly any, far from the origin: `python -m tests.degenerate all`.

A script, because which rounding remains depends on kernels that the environment chooses before torch starts.
"""

import itertools
import sys
import warnings

import pytest
import torch
from torch import Tensor

from ot_lens.errors import FitError
from ot_lens.geometry import (
    category_directions,
    class_angles,
    diagnose,
    direction_cosines,
    layer_angles,
    linear_cka,
    map_quality,
    massive_activations,
    principal_plane,
    similarity,
    spectra,
)
from ot_lens.linalg import PooledPCA
from ot_lens.transport import (
    fit_all,
    fit_gaussian_ot,
    fit_inlp,
    fit_leace,
    fit_linear_act,
    fit_mean_shift,
    fit_pca_ot,
    fit_projected_ablation,
    fit_reflection,
    fit_som,
    fit_subspace_ablation,
)
from tests.generators.gaussians import normal, one_layer, rng

SCALES = (1e-6, 1.0, 1e6)
OFFSETS = (0.0, 1e4, 1e8)
SHARES = "quantity in ['w2_share', 'pc1_share', 'variance_share']"
DRAWS = {"permutations": 4, "bootstrap": 4}
# Even, odd and prime sizes: kernels treat the rows and columns that are left over differently.
SHAPES = ((5, 6, 10), (11, 7, 67), (6, 5, 4))


def jittered(rows: Tensor, seed: int) -> Tensor:
    """The same numbers to the last digit but one."""
    last = torch.randint(-1, 2, rows.shape, generator=rng(seed))
    return rows * (1 + last * torch.finfo(torch.float64).eps)


def point(n: int, d: int, scale: float, offset: float, seed: int, *, jitter: bool) -> Tensor:
    rows = (offset * normal(d, seed=99) + scale * normal(d, seed=seed)).expand(n, d).clone()
    return jittered(rows, seed) if jitter else rows


def spread(n: int, d: int, scale: float, offset: float, seed: int) -> Tensor:
    return offset * normal(d, seed=99) + scale * normal(n, d, seed=seed)


def check_one_class_constant(n_H: int, n_S: int, d: int, scale: float, offset: float, jitter: bool) -> None:
    H, S = point(n_H, d, scale, offset, 1, jitter=jitter), spread(n_S, d, scale, offset, 2)
    acts = one_layer(H, S)
    assert class_angles(acts, k=1, **DRAWS)["angle"].isna().all()
    assert layer_angles(acts, k=1, **DRAWS)["angle"].isna().all()
    if min(n_H, n_S) >= 4:
        alike = similarity(acts, k=1, **DRAWS)
        assert alike.loc[alike["class"] == "harmful", ["value", "low", "high"]].isna().all(axis=None)
        with pytest.raises(FitError, match="no pattern"):
            linear_cka(H, H)
    assert (spectra(acts, bootstrap=0).query("`class` == 'harmful'")["eigenvalue"] == 0).all()
    table = diagnose(acts, **DRAWS).set_index("quantity")["value"]
    for name in ("effective_rank", "participation_ratio", "condition_number", "mardia_skewness"):
        assert table.isna()[f"{name}_harmful"], name
    for shrinkage in (None, "ledoit_wolf", "oas"):
        with pytest.raises(FitError, match="singular"):
            fit_gaussian_ot(H, S, shrinkage=shrinkage)
    affine = fit_linear_act(H, S)
    assert bool((affine.scale == 1).all())
    for edit in (affine, fit_leace(H, S), fit_leace(H, S, shrinkage=None)):
        moved = edit.map(torch.cat([H, S]))
        assert float((moved - S.mean(0)).norm(dim=1).max()) < 1e3 * d * (scale + 1e-6 * offset)


def check_two_points(n_H: int, n_S: int, d: int, scale: float, offset: float, jitter: bool) -> None:
    H, S = (point(n, d, scale, offset, seed, jitter=jitter) for n, seed in ((n_H, 1), (n_S, 2)))
    assert PooledPCA.of(H[None], S[None]).rank.tolist() == [1]
    with pytest.raises(FitError, match="rank"):
        fit_pca_ot(H, S, k=2)
    with pytest.raises(FitError, match="rank"):
        principal_plane(H, S)
    acts, gap = one_layer(H, S), float((H[0] - S[0]).norm())
    T = fit_pca_ot(H, S, k=1)
    assert float((T.U @ T.V.T).norm()) < 1e-6
    assert float((T.map(H) - S[0]).norm(dim=1).max()) <= 1e-6 * gap + 1e-13 * d * offset
    table = diagnose(acts, **DRAWS).set_index("quantity")["value"]
    assert table["auc_direction"] == 1
    assert table.isna()["fisher_ratio"]
    quality = map_quality({0: T}, acts, acts, **DRAWS).set_index("quantity")["value"]
    assert quality.isna()["covariance_error"]
    assert (quality[["outside_source", "outside_target"]] == 0).all()


def check_one_point(n_H: int, n_S: int, d: int, scale: float, offset: float, jitter: bool) -> None:
    H, S = (point(n, d, scale, offset, 1, jitter=False) for n in (n_H, n_S))
    if jitter:
        H, S = jittered(H, 3), jittered(S, 4)
    acts = one_layer(H, S)
    assert fit_all(acts, "gaussian_ot")[0].is_identity
    assert fit_mean_shift(H, S).is_identity
    assert fit_inlp(H, S).is_identity
    projections = (fit_subspace_ablation, fit_projected_ablation, fit_reflection, fit_som)
    for fit in (fit_leace, fit_pca_ot, fit_gaussian_ot, *projections):
        with pytest.raises(FitError):
            fit(H, S)
    assert direction_cosines(acts, **DRAWS)["cosine"].isna().all()
    assert (
        category_directions(acts, ["a", "b"] * (n_H // 2) + ["a"] * (n_H % 2), **DRAWS)["value"].isna().all()
    )
    shares = massive_activations(acts, **DRAWS).query(SHARES)["value"]
    assert len(shares) == 8
    assert shares.isna().all()
    table = diagnose(acts, **DRAWS).set_index("quantity")["value"]
    assert table["w2_squared"] <= 1e-20 * (scale + offset) ** 2
    for name in ("auc_direction", "fisher_ratio", "location_share_on_direction", "effective_rank_harmless"):
        assert table.isna()[name], name


def check_small_spread(n_H: int, n_S: int, d: int, scale: float, offset: float) -> None:
    """The negative control: what varies above rounding is not taken for a constant."""
    H, S = spread(n_H, d, scale, offset, 5), spread(n_S, d, scale, offset, 6)
    acts = one_layer(H, S)
    assert PooledPCA.of(H[None], S[None]).rank.tolist() == [min(n_H + n_S - 1, d)]
    assert class_angles(acts, k=1, **DRAWS)["angle"].notna().all()
    assert not fit_all(acts, "mean_shift")[0].is_identity
    assert massive_activations(acts, **DRAWS).query(SHARES)["value"].notna().all()
    table = diagnose(acts, **DRAWS).set_index("quantity")["value"]
    assert table.drop([name for name in table.index if "mardia" in name or "zirkler" in name]).notna().all()


def check(shape: tuple[int, int, int], scale: float, offset: float, jitter: bool) -> None:
    check_one_class_constant(*shape, scale, offset, jitter)
    check_two_points(*shape, scale, offset, jitter)
    check_one_point(*shape, scale, offset, jitter)
    if scale > 1e-9 * offset:
        check_small_spread(*shape, scale, offset)


CASES = [
    (shape, scale, offset, jitter)
    for shape, scale, offset, jitter in itertools.product(SHAPES, SCALES, OFFSETS, (False, True))
    if scale > 1e-11 * offset  # below, two points are one up to rounding
]
CRITICAL = [case for case in CASES if case[:2] == (SHAPES[0], 1.0)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for case in {"critical": CRITICAL, "all": CASES}[sys.argv[1]]:
        check(*case)
