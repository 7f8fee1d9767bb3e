"""CKA and the projection kernel against enumeration, TransformerLens, known populations; and their tables."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats
from transformer_lens.tools import analysis

import ot_lens as otl
from ot_lens.errors import ActivationError, FitError, OtLensError
from ot_lens.geometry.cka import (
    cka_matrix,
    gram_matrices,
    jackknife_intervals,
    permuted_cka,
    unit_patterns,
    without_each,
)
from tests.generators.gaussians import Layers, classes, layered, normal, one_layer, orthogonal

FEW = {"permutations": 39, "bootstrap": 39}


def enumerated(X, Y):
    """The ratio of unbiased HSIC as means over all different prompts."""

    def hsic(K, L):
        pairs, threes, fours = ([list(i) for i in permutations(range(len(K)), size)] for size in (2, 3, 4))
        together = np.mean([K[i, j] * L[i, j] for i, j in pairs])
        apart = np.mean([K[i, j] * L[q, r] for i, j, q, r in fours])
        return together + apart - 2 * np.mean([K[i, j] * L[i, q] for i, j, q in threes])

    K, L = ((X @ X.T).numpy(), (Y @ Y.T).numpy())
    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


def test_cka_of_columns_is_the_squared_correlation_and_the_debiased_one_is_the_enumerated():
    X, Y = normal(6, 1, seed=0), normal(6, 1, seed=1)
    r = stats.pearsonr(X[:, 0], Y[:, 0]).statistic
    assert otl.linear_cka(X, Y, debiased=False) == pytest.approx(r**2)
    wide = normal(6, 5, seed=2)
    assert otl.linear_cka(X, wide) == pytest.approx(enumerated(X, wide))
    dense = torch.linalg.matrix_norm((X - X.mean(0)).T @ (wide - wide.mean(0))) ** 2
    norms = [torch.linalg.matrix_norm((x - x.mean(0)).T @ (x - x.mean(0))) for x in (X, wide)]
    assert otl.linear_cka(X, wide, debiased=False) == pytest.approx(float(dense / norms[0] / norms[1]))


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_ignores_rotation_shift_and_scale_alone(debiased):
    X, Y = normal(20, 8, seed=3), normal(20, 8, seed=4) @ torch.diag(torch.arange(1.0, 9.0).double())
    value = otl.linear_cka(X, Y, debiased=debiased)
    turned = 7 * Y @ orthogonal(8, seed=5) + 100
    assert otl.linear_cka(X, turned, debiased=debiased) == pytest.approx(value)
    assert otl.linear_cka(turned, X, debiased=debiased) == pytest.approx(value)
    assert otl.linear_cka(Y, turned, debiased=debiased) == pytest.approx(1.0)
    stretched = Y @ torch.diag(torch.arange(8.0, 0.0, -1).double())
    assert otl.linear_cka(Y, stretched, debiased=debiased) < 0.98


def test_the_plain_estimate_calls_noise_of_many_coordinates_alike_and_the_debiased_one_does_not():
    n, d, e = 30, 2000, 3000
    X, Y = normal(n, d, seed=6), normal(n, e, seed=7)
    assert otl.linear_cka(X, Y, debiased=False) == pytest.approx(np.sqrt(d * e / (d + n) / (e + n)), abs=0.01)
    assert abs(otl.linear_cka(X, Y)) < 0.1


def test_leaving_out_each_prompt_is_computing_anew():
    samples = [normal(9, 4, seed=8), normal(9, 30, seed=9), normal(9, 2, seed=10)]
    each = without_each(gram_matrices(samples))
    for i, found in enumerate(each):
        kept = [x[torch.arange(9) != i] for x in samples]
        assert torch.allclose(found, cka_matrix(unit_patterns(gram_matrices(kept))), atol=1e-12)


def test_intervals_hold_the_population_value_in_nine_of_ten_samples_at_least():
    """Of Gaussians it is ||C_xy||^2 / (||C_xx|| ||C_yy||)."""
    A, B = normal(6, 12, seed=11), normal(6, 12, seed=12)
    noise = 0.5 * torch.eye(12, dtype=torch.float64)
    norm = torch.linalg.matrix_norm
    truth = float(norm(A.T @ B) ** 2 / norm(A.T @ A) / norm(B.T @ B + noise @ noise))
    held = []
    for seed in range(150):
        Z = normal(40, 6, seed=1000 + seed)
        grams = gram_matrices([Z @ A, Z @ B + normal(40, 12, seed=2000 + seed) @ noise])
        low, high = jackknife_intervals(grams, cka_matrix(unit_patterns(grams)))
        held.append(float(low[0, 1]) <= truth <= float(high[0, 1]))
    assert np.mean(held) >= 0.9


def test_unrelated_patterns_lie_in_the_band_of_permuted_prompts_and_equal_ones_do_not():
    samples = [normal(40, 300, seed=13), normal(40, 300, seed=14), normal(40, 300, seed=14) + 1]
    patterns = unit_patterns(gram_matrices(samples))
    null = permuted_cka(patterns, 199, seed=0)
    assert torch.equal(null, null.mT)
    value = cka_matrix(patterns)
    assert float(null[:, 0, 1].min()) < float(value[0, 1]) < float(null[:, 0, 1].max())
    assert float(value[1, 2]) > float(null[:, 1, 2].max())


def test_the_kernel_is_transformer_lens_s_and_its_null_has_the_known_moments():
    X, Y = (x[:, :9] for x in classes(20, 14, 12, seed=15))
    bases = [analysis.orthonormal_subspace((x - x.mean(0)).T, rank=3) for x in (X, Y)]
    expected = float(analysis.projection_kernel(*bases).score) / 3
    assert otl.projection_kernel(X, Y, k=3) == pytest.approx(expected)
    table = otl.similarity(one_layer(X, Y), k=3, permutations=1999, bootstrap=0)
    moments = analysis.random_projection_kernel_moments(9, 3)
    kernel = table[table["quantity"] == "projection_kernel"]
    assert kernel["null_mean"].to_numpy() == pytest.approx(moments.mean / 3, abs=0.01)
    assert moments.mean / 3 == pytest.approx(3 / 9)


def test_the_kernel_of_subspaces_known_by_construction():
    """Axes of falling variance: the first two shared, one shared, none."""
    Z = normal(30, 3, seed=16) @ torch.diag(torch.tensor([9.0, 4.0, 0.1], dtype=torch.float64))

    def on(*axes):
        return torch.zeros(30, 8, dtype=torch.float64).index_copy(1, torch.tensor(axes), Z)

    for axes, expected in (((0, 1, 5), 1.0), ((0, 6, 5), 0.5), ((6, 7, 5), 0.0)):
        assert otl.projection_kernel(on(0, 1, 2), 3 * on(*axes) + 1, k=2) == pytest.approx(expected, abs=0.01)


def test_the_table_is_the_functions_and_symmetric():
    acts = layered(12, 9, 20, layers=3, seed=17)
    table = otl.similarity(acts, k=2, **FEW)
    for row in table.itertuples():
        X, Y = (getattr(acts, row[4])(layer) for layer in (row.layer_a, row.layer_b))
        function = (
            otl.linear_cka if row.quantity == "linear_cka" else lambda X, Y: otl.projection_kernel(X, Y, 2)
        )
        assert row.value == pytest.approx(function(X, Y), abs=1e-9)
    assert len(table) == 2 * 2 * 9
    assert (table["n"] == table["class"].map({"harmful": 12, "harmless": 9})).all()
    assert ((table["low"] <= table["value"] + 1e-12) & (table["value"] <= table["high"] + 1e-12)).all()
    swapped = table.rename(columns={"layer_a": "layer_b", "layer_b": "layer_a"})
    both = table.merge(swapped, on=["layer_a", "layer_b", "class", "quantity"])
    for name in ("value", "low", "null_low"):
        assert both[f"{name}_x"].to_numpy() == pytest.approx(both[f"{name}_y"].to_numpy())


def test_a_layer_by_itself_has_the_numbers_it_has_among_others():
    acts = layered(12, 9, 20, layers=3, seed=18)
    few = Layers(acts.source[[0, 2]], acts.target[[0, 2]], (0, 2))
    whole = otl.similarity(acts, **FEW)
    chosen = whole[whole["layer_a"].isin([0, 2]) & whole["layer_b"].isin([0, 2])].reset_index(drop=True)
    alone = otl.similarity(few, **FEW)
    for name in ("value", "low", "high", "null_low", "null_high"):
        assert alone[name].to_numpy() == pytest.approx(chosen[name].to_numpy(), abs=1e-12)


def test_two_captures_of_the_same_prompts():
    acts = layered(12, 9, 20, layers=2, seed=19)
    turned = replace(acts, source=acts.source @ orthogonal(20, seed=20), layers=(1, 2))
    table = otl.similarity(acts, turned, k=2, **FEW).set_index(["class", "quantity"])
    assert set(table["layer_a"]) == {1}  # the only layer that both have, though it is another one's samples
    same = replace(acts, source=acts.source @ orthogonal(20, seed=20))
    table = otl.similarity(acts, same, k=2, **FEW)
    assert (table["layer_a"] == table["layer_b"]).all()
    values = table.groupby(["quantity", "class"])["value"].mean()
    assert values["linear_cka"].to_numpy() == pytest.approx(1.0)
    assert values["projection_kernel", "harmless"] == pytest.approx(1.0)
    assert values["projection_kernel", "harmful"] < 0.5  # the same pattern, along other axes


def test_what_cannot_be_compared():
    acts, constant = layered(6, 6, 10, layers=1, seed=21), torch.ones(6, 10, dtype=torch.float64)
    table = otl.similarity(one_layer(constant, normal(6, 10, seed=22)), k=2, **FEW)
    undefined = table[table["class"] == "harmful"]
    assert undefined["value"].isna().all()
    assert undefined["low"].isna().all()
    assert table.loc[table["class"] == "harmless", "value"].tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(FitError, match="no pattern"):
        otl.linear_cka(constant, normal(6, 3, seed=23))
    apart = torch.eye(5, dtype=torch.float64)
    with pytest.raises(FitError, match="no pattern"):
        otl.linear_cka(apart, normal(5, 3, seed=24))
    with pytest.raises(ActivationError, match="n = 3"):
        otl.linear_cka(normal(3, 2, seed=25), normal(3, 2, seed=26))
    with pytest.raises(ActivationError, match="6 and 5"):
        otl.linear_cka(normal(6, 2, seed=25), normal(5, 2, seed=26))
    with pytest.raises(FitError, match=r"k = 3.*2 dimensions"):
        otl.projection_kernel(normal(6, 2, seed=27), normal(9, 2, seed=28), k=3)
    with pytest.raises(FitError, match="got 3"):
        otl.similarity(layered(3, 6, 10, layers=1, seed=29), k=2)
    with pytest.raises(FitError, match="k = 6"):
        otl.similarity(acts, k=6)
    with pytest.raises(OtLensError, match="permutations = -1"):
        otl.similarity(acts, permutations=-1)
    with pytest.raises(ActivationError, match="6 and 7"):
        otl.similarity(acts, layered(7, 6, 10, layers=1, seed=30), k=2)
    with pytest.raises(ActivationError, match="common layer"):
        otl.similarity(acts, replace(acts, layers=(3,)), k=2)
    wider = layered(6, 6, 12, layers=1, seed=31)
    with pytest.raises(ActivationError, match=r"10 and 12.*k=None"):
        otl.similarity(acts, wider, k=2)
    assert otl.similarity(acts, wider, k=None, **FEW)["quantity"].unique().tolist() == ["linear_cka"]


def test_captures_of_other_prompts_are_refused():
    data = {"harmful": normal(1, 6, 1, 4, seed=32), "harmless": normal(1, 6, 1, 4, seed=33)}
    one, other = (otl.Activations(data, (0,), (-1,), "resid_pre", {"prompts": name}) for name in "ab")
    with pytest.raises(ActivationError, match="different prompts"):
        otl.similarity(one, other, k=2)
    assert otl.similarity(one, one, k=2, **FEW)["value"].to_numpy() == pytest.approx(1.0)
