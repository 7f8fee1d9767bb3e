"""Intervals of rates and means, paired tests and verdicts, on data whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ot_lens.behaviour import agreement
from ot_lens.statistics import BootstrapRatio, holm, mcnemar, mean, paired_bootstrap, perplexity, rate
from ot_lens.tables import REMOVE, one_direction, verdict
from tests.trust.coverage_counts import Counted, covered

SHARES = np.linspace(0.005, 0.995, 199)
# Differences of mean zero, and how much of 95 % their skewness may cost.
LAWS = {
    "normal": (lambda g, n: g.normal(size=n), 0.02),
    "exponential": (lambda g, n: g.exponential(size=n) - 1, 0.04),
    "log-normal": (lambda g, n: g.lognormal(size=n) - np.exp(0.5), 0.07),
    "ties": (lambda g, n: g.choice([-2.0, 0.0, 0.0, 2.0], size=n), 0.02),
}


# ------------------------------------------------------------------------------------------- rates
def wilson(n):
    found = [rate([True] * hits + [False] * (n - hits)) for hits in range(n + 1)]
    return np.array([e.low for e in found]), np.array([e.high for e in found])


def exact_coverage(low, high, n):
    """Of an interval for every number of hits, at every share: a sum over the binomial law, no simulation."""
    chances = stats.binom.pmf(np.arange(n + 1)[:, None], n, SHARES)
    return (chances * ((low[:, None] <= SHARES) & (high[:, None] >= SHARES))).sum(0)


@pytest.mark.parametrize("n", [16, 32, 64, 128, 256])
def test_the_wilson_interval_covers_on_average_and_nearly_everywhere(n, record_property):
    found = exact_coverage(*wilson(n), n)
    middle = found[(SHARES >= 0.1) & (SHARES <= 0.9)]
    record_property("mean", round(float(found.mean()), 4))
    record_property("least", round(float(found.min()), 4))
    record_property("least_from_10_to_90_per_cent", round(float(middle.min()), 4))
    assert found.mean() > 0.945
    assert middle.min() > 0.91
    assert found.min() > 0.83
    hits = np.arange(n + 1) / n
    half = 1.96 * np.sqrt(hits * (1 - hits) / n)
    assert exact_coverage(hits - half, hits + half, n).min() < 0.75  # the textbook's interval


@pytest.mark.parametrize("n", [32, 128])
def test_intervals_of_equal_rates_hardly_ever_part(n, record_property):
    low, high = wilson(n)
    apart = (high[:, None] < low).astype(float)
    worst = max(float(p @ apart @ p) for p in stats.binom.pmf(np.arange(n + 1), n, SHARES[:, None]))
    record_property("one_below_the_other", round(worst, 4))
    assert worst < 0.01


# ------------------------------------------------------------------------------------------- means
def means(law, n, replicates, scale=1.0):
    draw = LAWS[law][0]
    generator = np.random.default_rng(n)
    hits = []
    for seed in range(replicates):
        found = mean(draw(generator, n), seed=seed)
        low, high = (found.value + scale * (end - found.value) for end in (found.low, found.high))
        hits.append(low <= 0 <= high)
    return covered(hits)


@pytest.mark.parametrize("n", [8, 16, 64, 256])
@pytest.mark.parametrize("law", LAWS)
def test_intervals_of_means_cover(law, n, full_size, record_property):
    held = means(law, n, 1000 if full_size else 100 if n < 256 else 20)
    record_property("coverage", held.record)
    assert held.reaches(0.95 - LAWS[law][1])


def test_intervals_of_one_standard_error_do_not():
    assert not means("normal", 16, 200, scale=1 / 1.96).reaches(0.93)


def test_percentiles_of_the_bootstrap_do_not():
    """What the intervals were before."""
    generator, hits = np.random.default_rng(0), []
    for _ in range(600):
        x = LAWS["log-normal"][0](generator, 8)
        drawn = x[generator.integers(8, size=(500, 8))].mean(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        hits.append(low <= 0 <= high)
    assert not covered(hits).reaches(0.95 - LAWS["log-normal"][1])


def test_a_mean_knows_nothing_of_rare_values_it_has_not_seen(record_property):
    """No interval does: one prompt in ten scores 10 more, and 18 samples of 16 in a hundred hold none."""
    generator, hits = np.random.default_rng(1), []
    for seed in range(300):
        x = generator.normal(size=16) + 10 * (generator.random(16) < 0.1)
        found = mean(x, seed=seed)
        hits.append(found.low <= 1 <= found.high)
    held = covered(hits)
    record_property("coverage", held.record)
    assert not held.reaches(0.9)


def losses(generator, n, correlation=0.0):
    """Prompts' answers of 5 tokens or more, and their losses: log-normal a token, near ones alike."""
    counts = 5.0 + generator.poisson(20, n)
    z = generator.normal(size=n)
    for i in range(1, n):
        z[i] = correlation * z[i - 1] + np.sqrt(1 - correlation**2) * z[i]
    return counts * np.exp(0.5 * z), counts


@pytest.mark.parametrize("n", [16, 64])
def test_intervals_of_perplexity_cover(n, full_size, record_property):
    generator, truth = np.random.default_rng(2), float(np.exp(np.exp(0.125)))
    found = [perplexity(*losses(generator, n), seed=i) for i in range(1000 if full_size else 200)]
    held = covered([e.low <= truth <= e.high for e in found])
    record_property("coverage", held.record)
    assert held.reaches(0.92)


def test_windows_of_one_text_that_resemble_their_neighbours_are_fewer_than_they_seem(record_property):
    """What the interval of a text's perplexity does not know: windows half alike, as topics run on."""
    generator, truth = np.random.default_rng(3), float(np.exp(np.exp(0.125)))
    found = [perplexity(*losses(generator, 64, 0.5), seed=i) for i in range(300)]
    held = covered([e.low <= truth <= e.high for e in found])
    record_property("coverage", held.record)
    assert not held.reaches(0.9)


# ------------------------------------------------------------------------------------------- judges
@pytest.mark.parametrize("n", [16, 64, 256])
@pytest.mark.parametrize(("share", "kappa"), [(0.5, 0.0), (0.5, 0.6), (0.2, 0.6), (0.5, 0.9), (0.1, 0.8)])
def test_intervals_of_kappa_cover(share, kappa, n, full_size, record_property):
    """Two judges of one rate and of a known kappa: cells p^2 + kappa p q, and p q (1 - kappa) twice."""
    both, apart = share**2 + kappa * share * (1 - share), share * (1 - share) * (1 - kappa)
    cells = [both, apart, apart, 1 - both - 2 * apart]
    generator, hits = np.random.default_rng(n), []
    for seed in range(1000 if full_size else 100):
        answers = generator.choice(4, size=n, p=cells)
        found = agreement((answers < 2).tolist(), (answers % 2 == 0).tolist(), seed=seed).kappa
        if np.isfinite(found.value):
            hits.append(found.low <= kappa <= found.high)
    held = covered(hits)
    record_property("coverage", held.record)
    assert held.reaches(0.93)


# ------------------------------------------------------------------------------------------- tests
def test_mcnemar_never_exceeds_its_level(record_property):
    """Exactly: with m prompts that changed, each change goes either way with equal chance."""
    sizes = []
    for m in [*range(1, 12), 25, 50, 100]:
        p = [mcnemar([True] * g + [False] * (m - g), [False] * g + [True] * (m - g)) for g in range(m + 1)]
        sizes.append(float(stats.binom.pmf(np.arange(m + 1), m, 0.5) @ (np.array(p) <= 0.05)))
    record_property("largest_size", round(max(sizes), 4))
    assert max(sizes) <= 0.05
    assert sizes[-1] > 0.02


@pytest.mark.parametrize("n", [8, 16, 64])
@pytest.mark.parametrize("law", LAWS)
def test_the_paired_bootstrap_has_its_size(law, n, full_size, record_property):
    generator = np.random.default_rng(10 + n)
    replicates = 1000 if full_size else 60 if n < 64 else 20
    found = covered([paired_bootstrap(LAWS[law][0](generator, n), seed=i) <= 0.05 for i in range(replicates)])
    record_property("size", found.record)
    assert not found.exceeds(0.05 + LAWS[law][1])


@pytest.mark.parametrize("n", [8, 16, 64])
def test_two_methods_that_are_alike_are_seldom_told_apart(n, full_size, record_property):
    """Their differences are symmetric, with long tails where the scores have them."""
    generator, p, smaller_tail = np.random.default_rng(20 + n), [], []
    for seed in range(1000 if full_size else 200):
        d = np.exp(generator.normal(size=n)) - np.exp(generator.normal(size=n))
        p.append(paired_bootstrap(d, seed=seed))
        t = BootstrapRatio.of(d, np.ones(n), count=999, seed=seed).t
        own = d.mean() / (d.std(ddof=1) / np.sqrt(n))
        smaller_tail.append(2 * (1 + min((t >= own).sum(), (t <= own).sum())) / 1000)
    found, before = covered(np.array(p) <= 0.05), covered(np.array(smaller_tail) <= 0.05)
    record_property("size", found.record)
    record_property("size_by_the_smaller_tail_alone", before.record)
    assert not found.exceeds(0.05)
    if full_size and n > 8:  # the negative control
        assert before.exceeds(0.05)


def test_a_bootstrap_that_is_not_studentised_has_not():
    """What the test was before: resamples of few differences scatter too little."""
    generator, hits = np.random.default_rng(4), []
    for _ in range(600):
        d = generator.normal(size=8)
        drawn = (d - d.mean())[generator.integers(8, size=(999, 8))].mean(1)
        hits.append((1 + (np.abs(drawn) >= abs(d.mean())).sum()) / 1000 <= 0.05)
    assert covered(hits).exceeds(0.05 + LAWS["normal"][1])


@pytest.mark.parametrize("test", ["mcnemar", "paired_bootstrap"])
def test_holm_bounds_the_familywise_error(test, full_size, record_property):
    """Sixteen layers without an effect, on the same prompts: one false alarm in twenty sweeps at most."""
    generator, corrected, plain = np.random.default_rng(5), [], []
    for seed in range(1000 if full_size else 150 if test == "mcnemar" else 50):
        before = generator.normal(size=24)
        if test == "mcnemar":
            flags = generator.normal(size=(16, 24)) + before > 0.4
            base = generator.normal(size=24) + before > 0.4
            p = np.array([mcnemar(base.tolist(), row.tolist()) for row in flags])
        else:
            shifts = generator.normal(size=(16, 24)) + 0.3 * before
            p = np.array([paired_bootstrap(row, seed=seed) for row in shifts])
        corrected.append(bool((holm(p) < 0.05).any()))
        plain.append(bool((p < 0.05).any()))
    record_property("familywise_error", covered(corrected).record)
    record_property("without_correction", covered(plain).record)
    assert not covered(corrected).exceeds(0.05)
    assert covered(plain).exceeds(0.05)


# ------------------------------------------------------------------------------------------- verdicts
def sweeps(count, generator, layers=8, draws=5):
    """As many sweeps as methods, in one table: real edits that do what their controls do."""
    rows = []
    for method in range(count):
        spread = generator.uniform(0.5, 2, size=layers)
        for layer in range(layers):
            for kind in ("", "random_subspace", "permuted_labels"):
                for draw in range(draws if kind else 1):
                    value = float(generator.normal(-0.5, spread[layer]))
                    rows.append((f"m{method}", layer, kind, draw, value))
    table = pd.DataFrame(rows, columns=["method", "layer", "control", "draw", "value"])
    # The interval is a point and the p-value 0: the band alone has to hold.
    return table.assign(
        k=pd.array([None] * len(table), dtype="Int64"), set="single", measure="refusal_score_shift",
        prompts="harmful", transport=REMOVE, low=table["value"], high=table["value"], n=32, p_holm=0.0,
    )  # fmt: skip


def test_what_controls_do_is_seldom_called_localized(full_size, record_property):
    table = sweeps(1000 if full_size else 200, np.random.default_rng(6))
    found = verdict(table)
    alarms = covered(found.groupby("method")["localized"].any().tolist())
    record_property("familywise_error", alarms.record)
    assert not alarms.exceeds(0.05)
    # A band of one standard deviation about the draws' mean.
    controls = table[table["control"] != ""].groupby(["method", "layer"])["value"].agg(["mean", "std"])
    limit = (controls["mean"] - controls["std"]).rename("limit")
    real = table[table["control"] == ""].join(limit, on=["method", "layer"])
    narrow = (real["value"] < real["limit"]).groupby(real["method"]).any()
    assert covered(narrow.tolist()).exceeds(0.05)


def test_the_best_of_eight_directions_at_one_half_seldom_suffices(full_size, record_property):
    generator, alarms, plain, kept = np.random.default_rng(7), [], [], []
    for _ in range(1000 if full_size else 100):
        found = [rate(row.tolist()) for row in generator.random((8, 48)) < 0.5]
        table = pd.DataFrame([vars(one) for one in found]).assign(
            layer=range(8), method="rfa", set="single", control="", measure="refusal_rate", prompts="harmful"
        )
        says = one_direction(table)
        alarms.append(says.suffices is True)
        kept.append(says.suffices is False)
        plain.append(says.high < 0.5)
    record_property("called_sufficient", covered(alarms).record)
    record_property("called_insufficient", covered(kept).record)
    record_property("without_correction", covered(plain).record)
    assert not covered(alarms).exceeds(0.05)
    assert not covered(kept).exceeds(0.05)
    assert covered(plain).hits > 2 * covered(alarms).hits


def test_the_check_itself_tells_ninety_from_ninety_five():
    assert Counted(950, 1000).reaches(0.95)
    assert Counted(935, 1000).reaches(0.95)
    assert not Counted(900, 1000).reaches(0.95)
    assert Counted(100, 1000).exceeds(0.05)
    assert not Counted(60, 1000).exceeds(0.05)
