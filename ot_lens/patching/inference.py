"""Is an effect more than that of a partner of the same class, over a whole map of layers and tokens?"""

import numpy as np
from jaxtyping import Bool, Float, Int

FLIPS = 4999
CHUNK = 2**24  # numbers at a time


def flip_test(
    differences: Float[np.ndarray, "prompt cell"], seed: int
) -> tuple[Float[np.ndarray, " cell"], Float[np.ndarray, " cell"]]:
    """Two-sided p-values of "the mean difference is zero", of each cell and corrected over all of them.

    Signs of the prompts' differences are flipped, the same ones in all cells. Corrected: the largest
    statistic of all cells takes the place of each cell's (Westfall & Young 1993, single-step maxT), which
    counts cells that go together once and has no limit of resolution as Holm's correction has. NaN, a prompt
    that a cell was not measured on, does not count; nor does a cell without prompts.

    Args:
        differences: Of each prompt, NaN where there is none.
        seed: Of the signs.
    """
    exists = np.isfinite(differences)
    d = np.where(exists, differences, 0.0)
    n = exists.sum(axis=0)
    observed = _statistic(d.sum(axis=0), np.square(d).sum(axis=0), n)
    rng = np.random.default_rng(seed)
    own, largest = np.zeros(d.shape[1]), np.zeros(d.shape[1])
    size = max(1, CHUNK // d.size)
    for start in range(0, FLIPS, size):
        signs = rng.choice([-1.0, 1.0], size=(min(size, FLIPS - start), len(d)))
        flipped = _statistic(signs @ d, np.square(d).sum(axis=0), n)
        own += _reaches(flipped, observed).sum(axis=0)
        largest += _reaches(flipped.max(axis=1, keepdims=True), observed).sum(axis=0)
    p, corrected = ((1 + count) / (1 + FLIPS) for count in (own, largest))
    return np.where(n > 0, p, np.nan), np.where(n > 0, corrected, np.nan)


def _statistic(
    sums: Float[np.ndarray, "*flip cell"], squares: Float[np.ndarray, " cell"], n: Int[np.ndarray, " cell"]
) -> Float[np.ndarray, "*flip cell"]:
    """The size of Student's t: r sqrt((n - 1) / (n - r^2)) with r the sum over the root of the squares."""
    r = np.abs(sums) / np.sqrt(np.maximum(squares, 1e-30))
    return r * np.sqrt(np.maximum(n - 1, 0) / np.maximum(n - np.square(r), 1e-12))


def _reaches(
    flipped: Float[np.ndarray, "flip some"], observed: Float[np.ndarray, " cell"]
) -> Bool[np.ndarray, "flip cell"]:
    return flipped >= observed * (1 - 1e-9)
