"""What each fit says of itself, held against numbers computed another way."""

import dataclasses
import re
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from ot_lens.errors import PoorFitWarning, RunFolderError
from ot_lens.gaussian import Gaussian
from ot_lens.linalg import psd_eigen
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
from ot_lens.transport.diagnosis import problems_of, warn_if_poor
from ot_lens.transport.html import map_table
from ot_lens.transport.methods import METHODS
from ot_lens.transport.pca_ot import PooledPCA, subspace_transport
from tests.generators import naive
from tests.generators.gaussians import classes, layered, normal

EPS = torch.finfo(torch.float64).eps


def known(info: FitInfo) -> dict:
    """Fields that differ from an empty description."""
    return {
        name: value for name, value in dataclasses.asdict(info).items() if value != getattr(FitInfo(), name)
    }


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("mean_shift", {"k": 0}),
        ("directional_ablation", {"k": 1}),
        ("ace", {"k": 1}),
        ("linear_act", {"k": 0}),
        ("subspace_ablation", {"k": 2, "rank": 5}),
    ],
)
def test_maps_without_a_covariance_name_method_size_and_samples(method, expected):
    H, S = classes(5, 7, 20, seed=0)
    T = fit(method, H, S)
    assert T.rank == expected["k"]
    assert known(T.info) == {"method": method, "n_harmful": 5, "n_harmless": 7, **expected}


@pytest.mark.parametrize("ridge", [None, 0.3])
def test_pca_ot_describes_its_covariances(ridge):
    H, S = classes(40, 30, 50, seed=1)
    T = fit_pca_ot(H, S, k=3, ridge=ridge)
    X = torch.cat([H, S]) - torch.cat([H, S]).mean(0)
    _, s, Vh = torch.linalg.svd(X, full_matrices=False)
    C_H, C_S = (naive.covariance(Y @ Vh[:3].T) for Y in (H, S))
    added = 1e-6 * float(torch.trace(C_H) + torch.trace(C_S)) / 6 if ridge is None else ridge
    eigenvalues = torch.linalg.eigvalsh(C_H) + added
    found = known(T.info)
    assert found.pop("ridge") == pytest.approx(added)
    assert found.pop("condition_number") == pytest.approx(float(eigenvalues[-1] / eigenvalues[0]))
    assert found.pop("explained_variance") == pytest.approx(float(s[:3].square().sum() / s.square().sum()))
    assert found == {
        "method": "pca_ot",
        "k": 3,
        "n_harmful": 40,
        "n_harmless": 30,
        "rank": 50,
        "clipped_eigenvalues": 0,
    }


def test_only_a_drawn_choice_of_k_records_a_seed():
    H, S = classes(20, 24, 8, seed=2)
    assert fit_pca_ot(H, S, seed=3).info.seed is None
    assert fit_pca_ot(H, S, k=0.5, seed=3).info.seed is None
    assert fit_pca_ot(H, S, k="auto", seed=3).info.seed == 3
    assert fit_pca_ot(H, S, k="auto").info.seed == 0
    assert fit_all(layered(9, 9, 6, layers=1, seed=2), k="auto")[0].info.seed == 0


@pytest.mark.parametrize(("n_H", "n_S", "d"), [(9, 12, 40), (60, 50, 8)])
def test_gaussian_ot_describes_its_covariances(n_H, n_S, d):
    H, S = classes(n_H, n_S, d, seed=3)
    T = fit_gaussian_ot(H, S, ridge=0.2, shrinkage="oas")
    fitted = Gaussian.fit(H, ridge=0.2, shrinkage="oas")
    C = fitted.factor.T @ fitted.factor + fitted.floor * torch.eye(d, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(C)
    condition = float(eigenvalues[-1] / (eigenvalues[0] if d == 8 else fitted.floor))
    m = min(n_H + n_S, d)
    found = known(T.info)
    assert found.pop("condition_number") == pytest.approx(condition)
    assert found.pop("error_bound") == pytest.approx(m * EPS * (8 + condition**0.5), rel=1e-6, abs=0)
    assert found.pop("shrinkage_harmful") == pytest.approx(float(shrinkage_intensity(H - H.mean(0), "oas")))
    assert found.pop("shrinkage_harmless") == pytest.approx(float(shrinkage_intensity(S - S.mean(0), "oas")))
    assert found == {
        "method": "gaussian_ot",
        "n_harmful": n_H,
        "n_harmless": n_S,
        "ridge": 0.2,
        "shrinkage": "oas",
        "rank": min(m, n_H + n_S - 2),
        "clipped_eigenvalues": 0,
    }


def test_gaussian_ot_without_shrinkage_has_no_intensities():
    H, S = classes(60, 50, 8, seed=4)
    found = known(fit_gaussian_ot(H, S, shrinkage=None).info)
    assert set(found) & {"ridge", "shrinkage", "shrinkage_harmful", "shrinkage_harmless"} == set()


def test_the_covariance_is_shrunk_by_ledoit_wolf_unless_said_otherwise():
    acts = layered(9, 12, 30, layers=1, seed=5)
    H, S = acts.harmful(0), acts.harmless(0)
    streamed = fit_gaussian_ot_of_moments(Moments.of(H), Moments.of(S))
    for T in (fit_gaussian_ot(H, S), fit_all(acts, "gaussian_ot")[0], streamed):
        assert (T.info.ridge, T.info.shrinkage) == (None, "ledoit_wolf")
        assert T.info.shrinkage_harmless == pytest.approx(
            float(shrinkage_intensity(S - S.mean(0), "ledoit_wolf"))
        )
    streamed = fit_gaussian_ot_of_moments(Moments.of(H), Moments.of(S), ridge=0.3)
    assert streamed.info.ridge == 0.3
    assert_close(streamed.map(H), fit_gaussian_ot(H, S, ridge=0.3).map(H))
    for T in (fit_leace(H, S), fit_all(acts, "leace")[0]):
        assert (T.info.ridge, T.info.shrinkage) == (None, "ledoit_wolf")


@pytest.mark.parametrize("shrinkage", [None, "oas"])
def test_leace_describes_its_covariance(shrinkage):
    H, S = classes(9, 12, 40, seed=6)
    X = torch.cat([H, S])
    intensity = None if shrinkage is None else float(shrinkage_intensity(X - X.mean(0), shrinkage))
    found = known(fit_leace(H, S, ridge=0.2, shrinkage=shrinkage).info)
    if shrinkage is not None:
        assert found.pop("shrinkage") == shrinkage
        assert found.pop("shrinkage_harmful") == pytest.approx(intensity)
        assert found.pop("shrinkage_harmless") == pytest.approx(intensity)
    assert found == {"method": "leace", "k": 1, "n_harmful": 9, "n_harmless": 12, "ridge": 0.2, "rank": 20}


def test_entropic_ot_says_how_well_it_converged():
    H, S = classes(9, 12, 6, seed=7)
    found = known(fit_entropic_ot(H, S, epsilon=0.5).info)
    assert 0 <= found.pop("error_bound") <= 1e-8
    assert found == {"method": "entropic_ot", "n_harmful": 9, "n_harmless": 12}


def test_a_layer_where_nothing_varies_is_described_like_the_others():
    acts = layered(6, 7, 10, layers=2, seed=8)
    acts.source[0] = acts.target[0] = 0.3
    assert known(fit_all(acts, "leace")[0].info) == {
        "method": "leace",
        "layer": 0,
        "position": -1,
        "hook": "resid_pre",
        "k": 0,
        "n_harmful": 6,
        "n_harmless": 7,
        "rank": 0,
        "notes": ("all samples of both classes are identical here: the map is the identity",),
    }


# --- trouble


SOUND = {
    "n": 11,
    "dimension": 10,
    "condition_number": 1e8,
    "regularized": False,
    "clipped": 0,
    "stretch": 300.0,
}


def test_a_sound_fit_has_no_problems():
    assert problems_of(**SOUND) == ()
    assert problems_of(**(SOUND | {"n": 3, "regularized": True})) == ()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"n": 10},
            "10 samples cannot estimate a covariance in 10 dimensions: "
            "choose a smaller k, more prompts or a larger ridge",
        ),
        (
            {"condition_number": 1.1e8},
            "the source covariance has condition number 1.1e+08: "
            "choose a larger ridge or shrinkage, or a smaller k",
        ),
        ({"clipped": 1}, "1 eigenvalues came out negative and were set to 0: choose a larger ridge"),
        (
            {"stretch": 301.0},
            "the map stretches a direction by 301, in which the source hardly varies: "
            "choose a larger ridge or shrinkage, or a smaller k",
        ),
    ],
)
def test_each_problem_names_its_remedy(change, sentence):
    assert problems_of(**(SOUND | change)) == (sentence,)


def test_problems_add_up():
    assert len(problems_of(10, 10, 2e8, regularized=False, clipped=2, stretch=400.0)) == 4


def test_one_warning_names_the_layers_and_the_first_problem():
    good = AffineMap.identity(3).labelled(method="pca_ot", layer=1)
    bad = [good.labelled(layer=layer, problems=(f"trouble at {layer}", "more")) for layer in (2, 5)]
    with pytest.warns(PoorFitWarning) as caught:
        warn_if_poor([good, *bad])
    assert [str(warning.message) for warning in caught] == ["poor pca_ot fit at layers [2, 5]: trouble at 2"]
    with pytest.warns(PoorFitWarning) as caught:
        warn_if_poor([bad[0].labelled(layer=None)])
    assert str(caught[0].message) == "poor pca_ot fit: trouble at 2"
    warn_if_poor([good])  # a warning would fail this test


def test_a_fit_passes_on_what_it_found(monkeypatch):
    H, S = normal(30, 6, seed=9) * 1e-6, normal(40, 6, seed=10)
    with pytest.warns(PoorFitWarning):
        T = fit_pca_ot(H, S, k=2)
    assert [problem.split(":")[0] for problem in T.info.problems] == [
        f"the map stretches a direction by {float(torch.linalg.matrix_norm(T.U.T @ T.V, 2)) + 1:.0f}, "
        "in which the source hardly varies"
    ]
    with pytest.warns(PoorFitWarning):
        T = fit_gaussian_ot(H, S, shrinkage=None)
    assert len(T.info.problems) == 1
    assert T.info.problems[0].startswith("the map stretches a direction by")


def test_negative_eigenvalues_are_counted_over_both_classes(monkeypatch):
    from ot_lens.transport import pca_ot

    monkeypatch.setattr(pca_ot, "covariance", lambda X: torch.diag(torch.tensor([-1.0, 2.0])).double()[None])
    H, S = classes(9, 12, 20, seed=11)
    pca = PooledPCA.of(H[None], S[None])
    assert subspace_transport(pca, 9, 2, 0.1, "full").clipped.tolist() == [2]
    with pytest.warns(PoorFitWarning, match="2 eigenvalues came out negative"):
        assert fit_pca_ot(H, S, k=2, ridge=0.1).info.clipped_eigenvalues == 2


def test_negative_eigenvalues_of_the_map_are_counted(monkeypatch):
    from ot_lens.transport import gaussian_ot

    def clipping(C):
        values, vectors, _ = psd_eigen(C)
        return values, vectors, torch.tensor([2])

    monkeypatch.setattr(gaussian_ot, "psd_eigen", clipping)
    with pytest.warns(PoorFitWarning, match="2 eigenvalues came out negative"):
        assert fit_gaussian_ot(*classes(9, 12, 20, seed=13)).info.clipped_eigenvalues == 2


# --- on disk and in a notebook


def test_a_description_is_what_it_was_after_storage():
    info = FitInfo(
        method="ace", layer=3, position="last", k=1, strength=0.5, problems=("a", "b"), notes=("c",)
    )
    stored = info.to_dict()
    assert stored == {
        "method": "ace",
        "layer": 3,
        "position": "last",
        "k": 1,
        "strength": 0.5,
        "problems": ["a", "b"],
        "notes": ["c"],
    }
    assert FitInfo.from_dict(stored) == info
    assert FitInfo.from_dict({}) == FitInfo()


def test_what_is_wrong_with_a_stored_description_is_said():
    with pytest.raises(RunFolderError) as caught:
        FitInfo.from_dict({"flux": 1, "eps": 2, "k": 1})
    assert "['eps', 'flux']" in str(caught.value)
    with pytest.raises(
        RunFolderError, match=r"^A stored map is damaged: notes.0: .*valid string; save it again"
    ):
        FitInfo.from_dict({"notes": [3]})
    with pytest.raises(RunFolderError, match=r"^A stored map is damaged: the description: .*; save it again"):
        FitInfo.from_dict(None)


def cells(shown: str) -> dict[str, str]:
    row = "<tr><th style='text-align:left'>([^<]*)</th><td style='text-align:left'>([^<]*)</td></tr>"
    assert re.fullmatch(f"<table><caption>AffineMap</caption>({row})+</table>", shown)
    return dict(re.findall(row, shown))


def test_a_table_shows_all_that_is_known_in_order():
    info = FitInfo(
        method="pca_ot",
        layer=4,
        hook="resid_pre",
        position=-1,
        n_harmful=5,
        n_harmless=6,
        strength=0.25,
        explained_variance=0.456,
        condition_number=12.345,
        ridge=0.00123456,
        shrinkage="oas",
        shrinkage_harmful=0.111,
        shrinkage_harmless=0.999,
        problems=("a < b", "c"),
        notes=("d", "e"),
    )
    assert list(cells(map_table(info, {"d_model": "7"})).items()) == [
        ("method", "pca_ot"),
        ("T(x)", METHODS["pca_ot"].formula),
        ("layer", "4"),
        ("hook point", "resid_pre"),
        ("position", "-1"),
        ("fitted on", "5 harmful, 6 harmless"),
        ("strength", "0.25"),
        ("d_model", "7"),
        ("variance explained", "46%"),
        ("condition number", "12.3"),
        ("ridge", "0.00123 activation²"),
        ("shrinkage", "oas, 0.11 and 1.00"),
        ("problems", "a &lt; b; c"),
        ("notes", "d; e"),
    ]


def test_a_table_leaves_out_what_is_not_known():
    assert cells(map_table(FitInfo(), {})) == {"method": "unnamed", "T(x)": "scale ⊙ x + bias + U (Vᵀ x)"}
    assert cells(AffineMap.identity(3, dtype=torch.float16)._repr_html_()) == {
        "method": "identity",
        "T(x)": "x",
        "d_model": "3",
        "rank": "0",
        "dtype": "float16",
    }
    H, S = classes(9, 9, 4, seed=12)
    assert cells(fit("linear_act", H, S)._repr_html_())["rank"] == "0, and a diagonal"
    assert_close(fit("linear_act", H, S).map(H).mean(0), S.mean(0))


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
print(*(f"{warning.filename}:{warning.lineno}" for warning in caught))
"""


def test_a_warning_points_at_the_line_that_asked_for_the_fit():
    # In a process of its own: here the checks of shapes stand between a function and its caller.
    shown = subprocess.run([sys.executable, "-c", POOR_FITS], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [f"<string>:{line}" for line in range(8, 13)]
