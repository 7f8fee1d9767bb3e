"""Intervals of rates and means, paired tests and verdicts, on data whose truth is known."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ot_lens.behaviour import agreement
from ot_lens.statistics import BootstrapRatio, holm, mcnemar, mean, paired_bootstrap, perplexity, rate
from ot_lens.tables import REMOVE, one_direction, verdict
from tests.trust.coverage_tables import Counted, covered

Draw = Callable[[np.random.Generator, int], bool]
SHARES = np.linspace(0.005, 0.995, 199)
# Differences of mean zero, and how much of 95 % their skewness may cost.
LAWS = {
    "normal": (lambda g, n: g.normal(size=n), 0.02),
    "exponential": (lambda g, n: g.exponential(size=n) - 1, 0.04),
    "log-normal": (lambda g, n: g.lognormal(size=n) - np.exp(0.5), 0.07),
    "ties": (lambda g, n: g.choice([-2.0, 0.0, 0.0, 2.0], size=n), 0.02),
}


def simulated(draw: Draw, replicates: int, seed: int) -> Counted:
    """How many replicates hit; each is given the generator and its own seed."""
    generator = np.random.default_rng(seed)
    return covered([draw(generator, i) for i in range(replicates)])


def holds(found: Any, truth: float) -> bool:
    return found.low <= truth <= found.high


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
    for name, value in (("mean", found.mean()), ("least", found.min()), ("least_of_middle", middle.min())):
        record_property(name, round(float(value), 4))
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


# ------------------------------------------------------------------------------------------- intervals
def of_mean(law: str, n: int, scale: float, generator: np.random.Generator, seed: int) -> bool:
    found = mean(LAWS[law][0](generator, n), seed=seed)
    low, high = (found.value + scale * (end - found.value) for end in (found.low, found.high))
    return low <= 0 <= high


def of_percentiles(generator: np.random.Generator, seed: int) -> bool:
    """What the intervals were before."""
    x = LAWS["log-normal"][0](generator, 8)
    low, high = np.quantile(x[generator.integers(8, size=(500, 8))].mean(1), [0.025, 0.975])
    return low <= 0 <= high


def of_rare_values(generator: np.random.Generator, seed: int) -> bool:
    """One prompt in ten scores 10 more, and 18 samples of 16 in a hundred hold none."""
    return holds(mean(generator.normal(size=16) + 10 * (generator.random(16) < 0.1), seed=seed), 1)


def of_perplexity(n: int, correlation: float, generator: np.random.Generator, seed: int) -> bool:
    """Prompts' answers of 5 tokens or more, and their losses: log-normal per token, neighbours alike."""
    counts, z = 5.0 + generator.poisson(20, n), generator.normal(size=n)
    for i in range(1, n):
        z[i] = correlation * z[i - 1] + np.sqrt(1 - correlation**2) * z[i]
    return holds(perplexity(counts * np.exp(0.5 * z), counts, seed=seed), float(np.exp(np.exp(0.125))))


def of_kappa(share: float, kappa: float, n: int, generator: np.random.Generator, seed: int) -> bool:
    """Two judges of one rate and of a known kappa: cells p^2 + kappa p q, and p q (1 - kappa) twice."""
    both, apart = share**2 + kappa * share * (1 - share), share * (1 - share) * (1 - kappa)
    answers = generator.choice(4, size=n, p=[both, apart, apart, 1 - both - 2 * apart])
    found = agreement((answers < 2).tolist(), (answers % 2 == 0).tolist(), seed=seed).kappa
    return not np.isfinite(found.value) or holds(found, kappa)


JUDGES = [(0.5, 0.0), (0.5, 0.6), (0.2, 0.6), (0.5, 0.9), (0.1, 0.8)]
# Name: what is drawn, replicates in the suite (1,000 at full size), the coverage that it reaches.
COVER: dict[str, tuple[Draw, int, float]] = {
    **{
        f"mean, {law}, n = {n}": (partial(of_mean, law, n, 1.0), 100 if n < 256 else 20, 0.95 - LAWS[law][1])
        for law in LAWS
        for n in (8, 16, 64, 256)
    },
    **{f"perplexity, n = {n}": (partial(of_perplexity, n, 0.0), 200, 0.92) for n in (16, 64)},
    **{
        f"kappa = {kappa} at {share}, n = {n}": (partial(of_kappa, share, kappa, n), 100, 0.93)
        for share, kappa in JUDGES
        for n in (16, 64, 256)
    },
}
# Negative controls, and what no interval knows: name, replicates, a coverage that it does not reach.
FAIL: dict[str, tuple[Draw, int, float]] = {
    "intervals of one standard error": (partial(of_mean, "normal", 16, 1 / 1.96), 200, 0.93),
    "percentiles of the bootstrap": (of_percentiles, 600, 0.95 - LAWS["log-normal"][1]),
    "rare values that were not drawn": (of_rare_values, 300, 0.9),
    "windows of one text that resemble their neighbours": (partial(of_perplexity, 64, 0.5), 300, 0.9),
}


@pytest.mark.parametrize("name", COVER)
def test_intervals_cover(name, full_size, record_property):
    draw, few, level = COVER[name]
    held = simulated(draw, 1000 if full_size else few, seed=len(name))
    record_property("coverage", held.record)
    assert held.reaches(level)


@pytest.mark.parametrize("name", FAIL)
def test_intervals_that_must_not_cover(name, record_property):
    draw, replicates, level = FAIL[name]
    held = simulated(draw, replicates, seed=1)
    record_property("coverage", held.record)
    assert not held.reaches(level)


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
    rejected = lambda g, i: paired_bootstrap(LAWS[law][0](g, n), seed=i) <= 0.05  # noqa: E731
    found = simulated(rejected, 1000 if full_size else 60 if n < 64 else 20, 10 + n)
    record_property("size", found.record)
    assert not found.exceeds(0.05 + LAWS[law][1])


@pytest.mark.parametrize("n", [8, 16, 64])
def test_two_methods_that_are_alike_are_seldom_told_apart(n, full_size, record_property):
    """Their differences are symmetric, with long tails where the scores have them."""
    generator, p, smaller_tail = np.random.default_rng(20 + n), [], []
    for seed in range(1000 if full_size else 100):
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


def test_a_bootstrap_that_is_not_studentized_has_not():
    """What the test was before: resamples of few differences scatter too little."""

    def rejected(generator: np.random.Generator, seed: int) -> bool:
        d = generator.normal(size=8)
        drawn = (d - d.mean())[generator.integers(8, size=(999, 8))].mean(1)
        return (1 + (np.abs(drawn) >= abs(d.mean())).sum()) / 1000 <= 0.05

    assert simulated(rejected, 600, 4).exceeds(0.05 + LAWS["normal"][1])


@pytest.mark.parametrize("test", ["mcnemar", "paired_bootstrap"])
def test_holm_bounds_the_familywise_error(test, full_size, record_property):
    """Sixteen layers without an effect, on the same prompts: one false alarm in twenty sweeps at most."""
    generator, p = np.random.default_rng(5), []
    for seed in range(1000 if full_size else 150 if test == "mcnemar" else 50):
        before, noise = generator.normal(size=24), generator.normal(size=(17, 24))
        if test == "mcnemar":
            base, *flags = (noise + before > 0.4).tolist()
            p.append(np.array([mcnemar(base, row) for row in flags]))
        else:
            p.append(np.array([paired_bootstrap(row, seed=seed) for row in noise[1:] + 0.3 * before]))
    corrected = covered([bool((holm(one) < 0.05).any()) for one in p])
    plain = covered([bool((one < 0.05).any()) for one in p])
    record_property("familywise_error", corrected.record)
    record_property("without_correction", plain.record)
    assert not corrected.exceeds(0.05)
    assert plain.exceeds(0.05)


# ------------------------------------------------------------------------------------------- verdicts
def sweeps(count, generator, layers=8, draws=5):
    """As many sweeps as methods, in one table: real edits that do what their controls do."""
    rows = [
        (f"m{method}", layer, kind, draw, float(generator.normal(-0.5, spread)))
        for method in range(count)
        for layer, spread in enumerate(generator.uniform(0.5, 2, size=layers))
        for kind in ("", "random_subspace", "permuted_labels")
        for draw in range(draws if kind else 1)
    ]
    table = pd.DataFrame(rows, columns=["method", "layer", "control", "draw", "value"])
    # The interval is a point and the p-value 0: the band alone has to hold.
    return table.assign(
        k=pd.array([None] * len(table), dtype="Int64"), set="single", measure="refusal_score_shift",
        prompts="harmful", transport=REMOVE, low=table["value"], high=table["value"], n=32, p_holm=0.0,
    )  # fmt: skip


def test_what_controls_do_is_seldom_called_localized(full_size, record_property):
    table = sweeps(1000 if full_size else 200, np.random.default_rng(6))
    alarms = covered(verdict(table).groupby("method")["localized"].any().tolist())
    record_property("familywise_error", alarms.record)
    assert not alarms.exceeds(0.05)
    # A band of one standard deviation about the draws' mean.
    controls = table[table["control"] != ""].groupby(["method", "layer"])["value"].agg(["mean", "std"])
    limit = (controls["mean"] - controls["std"]).rename("limit")
    real = table[table["control"] == ""].join(limit, on=["method", "layer"])
    narrow = (real["value"] < real["limit"]).groupby(real["method"]).any()
    assert covered(narrow.tolist()).exceeds(0.05)


def test_the_best_of_eight_directions_at_one_half_seldom_suffices(full_size, record_property):
    generator, says = np.random.default_rng(7), []
    for _ in range(1000 if full_size else 100):
        found = [rate(row.tolist()) for row in generator.random((8, 48)) < 0.5]
        says.append(one_direction(pd.DataFrame(map(vars, found)).assign(
            layer=range(8), method="rfa", set="single", control="", measure="refusal_rate", prompts="harmful"
        )))  # fmt: skip
    alarms = covered([one.suffices is True for one in says])
    plain = covered([one.high < 0.5 for one in says])
    record_property("called_sufficient", alarms.record)
    record_property("without_correction", plain.record)
    assert not alarms.exceeds(0.05)
    assert not covered([one.suffices is False for one in says]).exceeds(0.05)
    assert plain.hits > 2 * alarms.hits


def test_the_check_itself_tells_ninety_from_ninety_five():
    assert [Counted(hits, 1000).reaches(0.95) for hits in (950, 935, 900)] == [True, True, False]
    assert [Counted(hits, 1000).exceeds(0.05) for hits in (60, 100)] == [False, True]
