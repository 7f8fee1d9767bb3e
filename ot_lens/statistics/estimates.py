"""95 % intervals: Wilson for rates, studentized bootstrap over prompts for means and ratios."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from ot_lens.errors import ActivationError

CONFIDENCE = 0.95
RESAMPLES = 999  # with 1 more, both tails are whole numbers of resamples
TAIL = (1 - CONFIDENCE) / 2
CANTELLI = float(np.sqrt((1 - TAIL) / TAIL))
CHUNK = 2**18  # prompts drawn at a time: they stay in cache


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes:
        value: The estimate.
        low: Lower end of the 95 % interval.
        high: Upper end.
        n: Number of prompts it rests on.
        interval: "wilson" or "bootstrap".
    """

    value: float
    low: float
    high: float
    n: int
    interval: str


def rate(flags: Sequence[bool]) -> Estimate:
    """Share of true values with its Wilson score interval (Wilson 1927).

    Raises:
        ActivationError: If there are no values.
    """
    if not flags:
        raise ActivationError("a rate needs at least one prompt.")
    test = stats.binomtest(int(sum(flags)), len(flags))
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(float(test.statistic), float(interval.low), float(interval.high), len(flags), "wilson")


def mean(values: Float[np.ndarray, " n"], *, seed: int, least: float = -np.inf) -> Estimate:
    """Mean with a studentized bootstrap interval over prompts.

    Args:
        values: One a prompt.
        seed: Of the resampling.
        least: What no mean can lie below, such as 0 of a divergence.
    """
    values = np.asarray(values, dtype=np.float64)
    return _estimate(Resampled.of(values, np.ones_like(values), count=RESAMPLES, seed=seed), least)


def perplexity(nll: Float[np.ndarray, " n"], n_tokens: Float[np.ndarray, " n"], *, seed: int) -> Estimate:
    """exp(total nll / total tokens) with a studentized bootstrap interval over prompts.

    The interval is that of the loss a token, a ratio of sums, and its ends are exponentiated.
    """
    loss = _estimate(Resampled.of(np.asarray(nll), np.asarray(n_tokens), count=RESAMPLES, seed=seed), 0.0)
    with np.errstate(over="ignore"):  # the loss of a destroyed model on a few prompts has no upper end
        value, low, high = (float(np.exp(end)) for end in (loss.value, loss.low, loss.high))
    return Estimate(value, low, high, loss.n, loss.interval)


@dataclass(frozen=True)
class Resampled:
    """A ratio of sums over prompts, and how far it is off in resamples, in standard errors.

    Attributes:
        value: sum(a) / sum(b); with b = 1 the mean of a.
        error: Its standard error, linearized: sqrt(n / (n - 1) sum(e^2)) / sum(b), e = a - value b.
        t: (value of a resample - value) / error of that resample (Efron & Tibshirani 1993, 12.5), in order;
            infinite where a resample has no spread.
        n: Prompts.
    """

    value: float
    error: float
    t: Float[np.ndarray, " count"]
    n: int

    @classmethod
    def of(
        cls, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], *, count: int, seed: int
    ) -> "Resampled":
        """Resample prompts with replacement."""
        n, value = len(a), float(a.sum() / b.sum())
        e = a - value * b
        spread = float(np.square(e).sum())
        if n < 2 or spread <= (1e-12 * np.abs(a).max()) ** 2:
            return cls(value, 0.0, np.zeros(count), n)
        sums = _resampled_sums(np.stack([e, b, e * e, e * b, b * b], axis=1), count, seed)
        off = sums[:, 0] / sums[:, 1]
        squares = sums[:, 2] - 2 * off * sums[:, 3] + off**2 * sums[:, 4]
        errors = np.sqrt(n / (n - 1) * np.where(squares > 1e-12 * spread, squares, 0.0)) / sums[:, 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.nan_to_num(off / errors, nan=0.0, posinf=np.inf, neginf=-np.inf)
        return cls(value, float(np.sqrt(n / (n - 1) * spread) / b.sum()), np.sort(t), n)


def _resampled_sums(
    columns: Float[np.ndarray, "n column"], count: int, seed: int
) -> Float[np.ndarray, "count column"]:
    """Sums over prompts drawn with replacement, some resamples at a time."""
    n, generator = len(columns), np.random.default_rng(seed)
    parts = []
    for start in range(0, count, max(1, CHUNK // n)):
        rows = min(max(1, CHUNK // n), count - start)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        parts.append(times.astype(np.float64) @ columns)
    return np.concatenate(parts)


def _estimate(resampled: Resampled, least: float) -> Estimate:
    """Its 95 % interval; where too many resamples have no spread, Student's t stands in for them.

    One prompt far from all others is missing from a third of the resamples, which then scatter by next to
    nothing: no end is further than Cantelli's inequality puts it for any distribution, 6.2 standard errors.
    """
    value, error, n = resampled.value, resampled.error, resampled.n
    if error == 0:
        low, high = (value, value) if n > 1 else (float("nan"), float("nan"))
        return Estimate(value, low, high, n, "bootstrap")
    ends = np.quantile(resampled.t, [TAIL, 1 - TAIL], method="inverted_cdf")
    student = stats.t.ppf([TAIL, 1 - TAIL], n - 1)
    most = max(CANTELLI, student[1])
    lowest, highest = np.where(np.isfinite(ends), np.clip(ends, -most, most), student)
    low, high = min(value, value - highest * error), max(value, value - lowest * error)
    return Estimate(value, float(max(least, low)), float(high), n, "bootstrap")
