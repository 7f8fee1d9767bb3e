"""95 % intervals: Wilson for rates, studentized bootstrap over prompts for means and ratios."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from scipy import stats

from ot_lens.errors import ActivationError

CONFIDENCE = 0.95
RESAMPLES = 999  # with 1 more, both tails are whole numbers of resamples
TAIL = (1 - CONFIDENCE) / 2
CANTELLI = float(np.sqrt((1 - TAIL) / TAIL))
CHUNK = 2**18  # prompts drawn at a time: they stay in cache
KEPT = 2**22  # prompts of all resamples of one size that are kept, 32 MiB


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval ("wilson" or "bootstrap") and the number of prompts behind it."""

    value: float
    low: float
    high: float
    n: int
    interval: str


def rate(flags: Sequence[bool]) -> Estimate:
    """Share of true values, one per prompt, with its Wilson score interval."""
    return share(int(sum(flags)), len(flags))


@lru_cache(maxsize=4096)
def share(hits: int, n: int) -> Estimate:
    """`hits` of n with the Wilson score interval (Wilson 1927)."""
    if n == 0:
        raise ActivationError("A rate needs at least one prompt, got none.")
    test = stats.binomtest(hits, n)
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(float(test.statistic), float(interval.low), float(interval.high), n, "wilson")


def mean(values: Float[np.ndarray, " n"], *, seed: int, least: float = -np.inf) -> Estimate:
    """Mean with a studentized bootstrap interval over prompts; `least` bounds it, such as 0 a divergence."""
    values = np.asarray(values, dtype=np.float64)
    return _estimate(BootstrapRatio.of(values, np.ones_like(values), count=RESAMPLES, seed=seed), least)


def ratio_of_sums(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], *, seed: int, least: float = 0.0
) -> Estimate:
    """Total of a over that of b, at least `least`, one pair per prompt; unknown if that of b is zero."""
    if not b.sum():
        return unknown(len(b))
    sign = np.sign(b.sum())
    return _estimate(BootstrapRatio.of(sign * a, sign * b, count=RESAMPLES, seed=seed), least)


def ratio(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], *, seed: int) -> Estimate:
    """Total of a over that of b, one pair per prompt; unknown unless b is above zero beyond its interval."""
    if not mean(b, seed=seed).low > 0:
        return unknown(len(b))
    return _estimate(BootstrapRatio.of(a, b, count=RESAMPLES, seed=seed), -np.inf)


def unknown(n: int) -> Estimate:
    """What n prompts cannot tell."""
    return Estimate(np.nan, np.nan, np.nan, n, "")


def perplexity(nll: Float[np.ndarray, " n"], n_tokens: Float[np.ndarray, " n"], *, seed: int) -> Estimate:
    """exp(total nll / total tokens), with the exponentiated interval of the loss per token."""
    per_token = BootstrapRatio.of(np.asarray(nll), np.asarray(n_tokens), count=RESAMPLES, seed=seed)
    loss = _estimate(per_token, 0.0)
    with np.errstate(over="ignore"):  # the loss of a destroyed model on a few prompts has no upper end
        value, low, high = (float(np.exp(end)) for end in (loss.value, loss.low, loss.high))
    return Estimate(value, low, high, loss.n, loss.interval)


@dataclass(frozen=True)
class BootstrapRatio:
    """A ratio of sums over prompts, and its deviations in resamples in order, in standard errors of each.

    The error is linearized: sqrt(n / (n - 1) sum(e^2)) / sum(b), e = a - value b. A deviation t is infinite
    where a resample has no spread (Efron & Tibshirani 1993, 12.5).
    """

    value: float
    error: float
    t: Float[np.ndarray, " count"]
    n: int

    @classmethod
    def of(
        cls, a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], *, count: int, seed: int
    ) -> "BootstrapRatio":
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
    """Sums over prompts drawn with replacement."""
    return np.concatenate([times @ columns for times in _draws(len(columns), count, seed)])


def _draws(n: int, count: int, seed: int) -> Iterable[Float[np.ndarray, "some n"]]:
    """How often each resample holds each prompt; kept for the other candidates, unless it is large."""
    return _kept_draws(n, count, seed) if n * count <= KEPT else _drawn(n, count, seed)


@lru_cache(maxsize=8)
def _kept_draws(n: int, count: int, seed: int) -> tuple[Float[np.ndarray, "some n"], ...]:
    return tuple(_drawn(n, count, seed))


def _drawn(n: int, count: int, seed: int) -> Iterator[Float[np.ndarray, "some n"]]:
    """A few resamples at a time."""
    generator = np.random.default_rng(seed)
    for start in range(0, count, max(1, CHUNK // n)):
        rows = min(max(1, CHUNK // n), count - start)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _estimate(resampled: BootstrapRatio, least: float) -> Estimate:
    """95 % interval; Student's t replaces the bootstrap where too many resamples have no spread.

    One prompt far from all others is missing from a third of the resamples, which then hardly vary: no end is
    farther than Cantelli's inequality allows for any distribution, 6.2 standard errors.
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
