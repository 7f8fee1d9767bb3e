"""What each fit says of itself, held against numbers computed another way; warnings of poor fits."""

import dataclasses
import re
import subprocess
import sys

import pytest
import torch

from ot_lens.errors import PoorFitWarning
from ot_lens.gaussian import Gaussian
from ot_lens.moments import Moments, shrinkage_intensity
from ot_lens.transport import (
    AffineMap,
    FitInfo,
    fit,
    fit_all,
    fit_entropic_ot,
    fit_gaussian_ot,
    fit_gaussian_ot_of_moments,
    fit_leace,
    fit_pca_ot,
)
from ot_lens.transport.info import diagnosed, map_table
from tests.generators import naive
from tests.generators.gaussians import classes, layered, normal

EPS = torch.finfo(torch.float64).eps


def known(info: FitInfo) -> dict:
    """Fields that differ from an empty description."""
    return {
        name: value for name, value in dataclasses.asdict(info).items() if value != getattr(FitInfo(), name)
    }


def intensity(X: torch.Tensor, shrinkage: str) -> float:
    return float(shrinkage_intensity(X - X.mean(0), shrinkage))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("mean_shift", {"k": 0}),
        ("directional_ablation", {"k": 1}),
        ("ace", {"k": 1}),
        ("linear_act", {"k": 0}),
        ("subspace_ablation", {"k": 2, "rank": 5}),
        ("projected_ablation", {"k": 1}),
        ("reflection", {"k": 1}),
    ],
)
def test_maps_without_a_covariance_name_method_size_and_samples(method, expected):
    T = fit(method, *classes(5, 7, 20, seed=0))
    assert T.rank == expected["k"]
    assert known(T.info) == {"method": method, "n_harmful": 5, "n_harmless": 7, **expected}


@pytest.mark.parametrize("ridge", [None, 0.3])
def test_pca_ot_describes_its_covariances(ridge):
    H, S = classes(40, 30, 50, seed=1)
    found = known(fit_pca_ot(H, S, k=3, ridge=ridge).info)
    X = torch.cat([H, S]) - torch.cat([H, S]).mean(0)
    _, s, Vh = torch.linalg.svd(X, full_matrices=False)
    C_H, C_S = (naive.covariance(Y @ Vh[:3].T) for Y in (H, S))
    added = 1e-6 * float(torch.trace(C_H) + torch.trace(C_S)) / 6 if ridge is None else ridge
    eigenvalues = torch.linalg.eigvalsh(C_H) + added
    assert found.pop("ridge") == pytest.approx(added)
    assert found.pop("condition_number") == pytest.approx(float(eigenvalues[-1] / eigenvalues[0]))
    assert found.pop("explained_variance") == pytest.approx(float(s[:3].square().sum() / s.square().sum()))
    sizes = {"n_harmful": 40, "n_harmless": 30, "rank": 50}
    assert found == {"method": "pca_ot", "k": 3, **sizes, "clipped_eigenvalues": 0}


def test_only_a_drawn_choice_of_k_records_a_seed():
    H, S = classes(20, 24, 8, seed=2)
    assert [fit_pca_ot(H, S, k=k, seed=3).info.seed for k in (2, 0.5, "auto")] == [None, None, 3]
    assert fit_all(layered(9, 9, 6, layers=1, seed=2), k="auto")[0].info.seed == 0


@pytest.mark.parametrize(("n_H", "n_S", "d"), [(9, 12, 40), (60, 50, 8)])
def test_gaussian_ot_describes_its_covariances(n_H, n_S, d):
    H, S = classes(n_H, n_S, d, seed=3)
    found = known(fit_gaussian_ot(H, S, ridge=0.2, shrinkage="oas").info)
    fitted = Gaussian.fit(H, ridge=0.2, shrinkage="oas")
    C = fitted.factor.T @ fitted.factor + fitted.floor * torch.eye(d, dtype=torch.float64)
    eigenvalues, m = torch.linalg.eigvalsh(C), min(n_H + n_S, d)
    condition = float(eigenvalues[-1] / (eigenvalues[0] if d == 8 else fitted.floor))
    assert found.pop("condition_number") == pytest.approx(condition)
    assert found.pop("error_bound") == pytest.approx(m * EPS * (8 + condition**0.5), rel=1e-6, abs=0)
    assert found.pop("shrinkage_harmful") == pytest.approx(intensity(H, "oas"))
    assert found.pop("shrinkage_harmless") == pytest.approx(intensity(S, "oas"))
    sizes = {"n_harmful": n_H, "n_harmless": n_S, "rank": min(m, n_H + n_S - 2)}
    options = {"ridge": 0.2, "shrinkage": "oas"}
    assert found == {"method": "gaussian_ot", **sizes, **options, "clipped_eigenvalues": 0}
    plain = known(fit_gaussian_ot(*classes(60, 50, 8, seed=4), shrinkage=None).info)
    assert not plain.keys() & {"ridge", "shrinkage", "shrinkage_harmful", "shrinkage_harmless"}


def test_the_covariance_is_shrunk_by_ledoit_wolf_unless_said_otherwise():
    acts = layered(9, 12, 30, layers=1, seed=5)
    H, S = acts.harmful(0), acts.harmless(0)
    streamed = fit_gaussian_ot_of_moments(Moments.of(H), Moments.of(S))
    for T in (fit_gaussian_ot(H, S), fit_all(acts, "gaussian_ot")[0], streamed):
        assert (T.info.ridge, T.info.shrinkage) == (None, "ledoit_wolf")
        assert T.info.shrinkage_harmless == pytest.approx(intensity(S, "ledoit_wolf"))
    for T in (fit_leace(H, S), fit_all(acts, "leace")[0]):
        assert (T.info.ridge, T.info.shrinkage) == (None, "ledoit_wolf")


@pytest.mark.parametrize("shrinkage", [None, "oas"])
def test_leace_describes_its_covariance(shrinkage):
    H, S = classes(9, 12, 40, seed=6)
    found = known(fit_leace(H, S, ridge=0.2, shrinkage=shrinkage).info)
    if shrinkage is not None:
        assert found.pop("shrinkage") == shrinkage
        for label in ("harmful", "harmless"):
            assert found.pop(f"shrinkage_{label}") == pytest.approx(intensity(torch.cat([H, S]), shrinkage))
    assert found == {"method": "leace", "k": 1, "n_harmful": 9, "n_harmless": 12, "ridge": 0.2, "rank": 20}


def test_entropic_ot_says_how_well_it_converged():
    found = known(fit_entropic_ot(*classes(9, 12, 6, seed=7), epsilon=0.5).info)
    assert 0 <= found.pop("error_bound") <= 1e-8
    assert found == {"method": "entropic_ot", "n_harmful": 9, "n_harmless": 12}


# --- poor fits

SOUND = {"n": 11, "dimension": 10, "regularized": False, "stretch": 300.0}


@pytest.mark.parametrize(
    ("info", "change", "named"),
    [
        (FitInfo(condition_number=1e8, clipped_eigenvalues=0), {}, []),
        (FitInfo(), {"n": 3, "regularized": True}, []),
        (FitInfo(), {"n": 10}, ["10 samples"]),
        (FitInfo(condition_number=1.1e8), {}, ["1.1e+08"]),
        (FitInfo(clipped_eigenvalues=1), {}, ["1 eigenvalues"]),
        (FitInfo(), {"stretch": 301.0}, ["301"]),
        (
            FitInfo(condition_number=2e8, clipped_eigenvalues=2),
            {"n": 9, "stretch": 400.0},
            ["9 samples", "2.0e+08", "2 eigenvalues", "400"],
        ),
    ],
)
def test_each_problem_is_named_with_its_number_and_a_remedy(info, change, named):
    problems = diagnosed(info, **(SOUND | change)).problems
    assert len(problems) == len(named)
    for problem, number in zip(problems, named, strict=True):
        assert number in problem
        assert ": choose a " in problem


def test_a_poor_fit_warns_once_names_its_numbers_and_stays_finite():
    few, narrow = classes(4, 9, 20, seed=23), (normal(30, 6, seed=9) * 1e-6, normal(40, 6, seed=10))
    ill = classes(9, 9, 20, seed=15)
    for fitted, (H, S), options, named in (
        (fit_pca_ot, few, {"k": 6}, "4 samples"),
        (fit_pca_ot, narrow, {"k": 2}, "the map stretches a direction by"),
        (fit_gaussian_ot, narrow, {"shrinkage": None}, "the map stretches a direction by"),
        (fit_gaussian_ot, ill, {"shrinkage": None, "ridge": 1e-10}, "condition number"),
    ):
        with pytest.warns(PoorFitWarning, match=named) as caught:
            T = fitted(H, S, **options)
        assert len(caught) == 1
        assert named in T.info.problems[0]
        assert torch.isfinite(T.map(H)).all()
    with pytest.warns(PoorFitWarning):
        T = fit_pca_ot(*narrow, k=2)
    assert f"by {float(torch.linalg.matrix_norm(T.U.T @ T.V, 2)) + 1:.0f}," in T.info.problems[0]


POOR_FITS = """
import torch, warnings
import ot_lens as otl
H, S = (torch.randn(n, 20, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (4, 9))
moments = [otl.Moments.of(X) for X in (H, S)]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    otl.fit_pca_ot(H, S, k=6)
    otl.fit("pca_ot", H, S, k=6)
    otl.fit_gaussian_ot(H, S, shrinkage=None, ridge=1e-10)
    otl.fit_gaussian_ot_of_moments(*moments, shrinkage=None, ridge=1e-10)
    otl.fit_entropic_ot(H, S, epsilon=0.001, iterations=2)
ours = [warning for warning in caught if issubclass(warning.category, otl.errors.PoorFitWarning)]
print(*(f"{warning.filename}:{warning.lineno}" for warning in ours))
"""


def test_a_warning_points_at_the_line_that_asked_for_the_fit():
    # In a process of its own: here the checks of shapes come between a function and its caller.
    shown = subprocess.run([sys.executable, "-c", POOR_FITS], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [f"<string>:{line}" for line in range(8, 13)]


# --- in a notebook


def cells(shown: str) -> dict[str, str]:
    row = "<tr><th style='text-align:left'>([^<]*)</th><td style='text-align:left'>([^<]*)</td></tr>"
    assert re.fullmatch(f"<table><caption>AffineMap</caption>({row})+</table>", shown)
    return dict(re.findall(row, shown))


def test_a_table_leaves_out_what_is_not_known():
    assert list(cells(map_table(FitInfo("<mine>"), {})).items()) == [
        ("method", "&lt;mine&gt;"),
        ("T(x)", "scale ⊙ x + bias + U (Vᵀ x)"),  # a method that is not known here has the general form
    ]
    identity = cells(AffineMap.identity(3, dtype=torch.float16)._repr_html_())
    size = {"d_model": "3", "rank": "0", "dtype": "float16"}
    assert identity == {"method": "identity", "T(x)": "x", **size}
    mapped = fit("linear_act", *classes(9, 9, 4, seed=12))
    assert cells(mapped._repr_html_())["rank"] == "0, and a diagonal"
