"""Paired tests: by hand, against their definitions, and on data without an effect."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ot_lens.errors import ActivationError
from ot_lens.statistics import BootstrapRatio, holm, mcnemar, mean, paired_bootstrap, perplexity


# ------------------------------------------------------------------------------------------- McNemar
def flags(gained: int, lost: int, both: int = 3, neither: int = 4) -> tuple[list[bool], list[bool]]:
    before = [True] * gained + [False] * lost + [True] * both + [False] * neither
    after = [False] * gained + [True] * lost + [True] * both + [False] * neither
    return before, after


@pytest.mark.parametrize(
    ("gained", "lost", "p"), [(6, 0, 2 / 64), (0, 6, 2 / 64), (1, 5, 14 / 64), (3, 3, 1), (0, 0, 1)]
)
def test_mcnemar_by_hand_counts_only_the_prompts_that_changed(gained, lost, p):
    """6 changes of 6 one way: 2 / 2^6. 1 of 6: 2 (1 + 6) / 2^6."""
    assert mcnemar(*flags(gained, lost)) == pytest.approx(p)
    assert mcnemar(*flags(gained, lost, 500, 900)) == pytest.approx(p)
    with pytest.raises(ActivationError, match="3 flags before and 2 after"):
        mcnemar([True] * 3, [True] * 2)


@pytest.mark.parametrize(
    ("test", "share"),
    [
        (lambda g, i: mcnemar(*(list(map(bool, g.integers(0, 2, 40))) for _ in range(2))), 0.05),
        (lambda g, i: paired_bootstrap(g.normal(0, 1, 40), seed=i), 0.1),
    ],
    ids=["mcnemar", "bootstrap"],
)
def test_no_effect_is_seldom_significant(test, share):
    generator = np.random.default_rng(3)
    p = np.array([test(generator, i) for i in range(200)])
    assert np.mean(p < 0.05) < share


# ------------------------------------------------------------------------------------------- bootstrap
def test_the_bootstrap_is_near_the_t_test_where_that_holds():
    generator = np.random.default_rng(1)
    for shift in (0.0, 0.15, 0.3):
        d = generator.normal(shift, 1.0, 120)
        p = [paired_bootstrap(d, seed=seed) for seed in (0, 0, 1)]
        assert p == pytest.approx([stats.ttest_1samp(d, 0).pvalue] * 3, abs=0.03)
        assert p[0] == p[1] != p[2]


def test_a_clear_difference_is_significant_and_few_or_none_are_not():
    clear = np.random.default_rng(2).normal(2, 1, 50)
    assert max(paired_bootstrap(clear, seed=0), paired_bootstrap(-clear, seed=0)) <= 2 / 5000
    assert paired_bootstrap(np.zeros(20), seed=0) == 1
    assert paired_bootstrap(np.array([3.0]), seed=0) == 1
    # All signs alike: one of 2^3 each way.
    assert paired_bootstrap(np.array([1.0, 1.1, 0.9]), seed=0) == 2 / 8
    with pytest.raises(ActivationError, match="at least one prompt"):
        paired_bootstrap(np.array([]), seed=0)


# ------------------------------------------------------------------------------------------- Holm
def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2, and 0.04 x 1 raised to the one before it."""
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.6])) == pytest.approx([1, 1])
    assert holm(np.array([0.2])) == pytest.approx([0.2])
    assert holm(np.array([])).tolist() == []
    # A missing test stays missing and does not count.
    assert holm(np.array([0.01, np.nan, 0.03])) == pytest.approx([0.02, np.nan, 0.03], nan_ok=True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_procedure(p):
    """Rejected at a level: those before the first, in order of p, that exceeds level / (tests left)."""
    values = np.array(p)
    adjusted = holm(values)
    assert (adjusted >= values).all()
    assert (adjusted <= np.minimum(values * len(p), 1)).all()
    order = np.argsort(values, kind="stable")
    assert all(a <= b for a, b in pairwise(adjusted[order]))
    for level in (0.0105, 0.0512, 0.203):  # no multiple of a p-value, where rounding would decide
        rejected = set()
        for left, index in zip(range(len(p), 0, -1), order, strict=True):
            if values[index] * left > level:
                break
            rejected.add(int(index))
        assert {i for i, value in enumerate(adjusted) if value <= level} == rejected


# ------------------------------------------------------------------------------------------- resamples
def test_resamples_are_counted_in_their_own_standard_errors():
    """Against the loop: ratio, its linearized error, and the same of every resample."""
    generator = np.random.default_rng(6)
    a, b = generator.gamma(2.0, size=9), generator.gamma(3.0, size=9)
    found = BootstrapRatio.of(a, b, count=50, seed=4)

    def ratio_and_error(a, b):
        e = a - a.sum() / b.sum() * b
        return a.sum() / b.sum(), np.sqrt(9 / 8 * (e**2).sum()) / b.sum()

    value, error = ratio_and_error(a, b)
    drawn = np.random.default_rng(4).integers(9, size=(50, 9))
    each = [ratio_and_error(a[rows], b[rows]) for rows in drawn]
    assert (found.value, found.error) == pytest.approx((value, error))
    assert found.t == pytest.approx(sorted((one - value) / spread for one, spread in each))


def test_resamples_without_spread_count_against_an_effect():
    d = np.array([1.0] + [0.0] * 11)
    found = BootstrapRatio.of(d, np.ones(12), count=999, seed=0)
    assert np.isneginf(found.t).mean() == pytest.approx((11 / 12) ** 12, abs=0.05)
    assert paired_bootstrap(d, seed=0) > 0.1
    student = stats.ttest_1samp(d, 0).confidence_interval()
    assert mean(d, seed=0).high == pytest.approx(student.high)


def test_one_prompt_far_from_the_others_leaves_a_bounded_interval():
    # A third of the resamples miss it: without a bound their t would put the upper end at thousands.
    values = np.append(np.linspace(0.0, 0.02, 11), 4.0)
    found = mean(values, seed=0)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert found.high == pytest.approx(found.value + np.sqrt(39) * error)
    assert BootstrapRatio.of(values, np.ones(12), count=999, seed=0).t[25] < -100


def test_the_interval_of_a_mean_contains_it_and_respects_the_bound():
    values = np.random.default_rng(7).lognormal(sigma=2, size=12)
    free, bounded = mean(values, seed=0), mean(values, seed=0, least=0.0)
    assert free.low <= free.value <= free.high
    assert (bounded.low, bounded.high) == (max(free.low, 0.0), free.high)
    assert perplexity(values, np.ones(12), seed=0).low >= 1
