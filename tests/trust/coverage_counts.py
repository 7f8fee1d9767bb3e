"""Counts of a simulation against the nominal level, by exact binomial tests."""

from dataclasses import dataclass

from scipy import stats

# Of one comparison; seeds are fixed, so that a comparison that passed once passes always.
ALARM = 1e-4


@dataclass(frozen=True)
class Counted:
    """How many of n trials hit."""

    hits: int
    n: int

    @property
    def record(self) -> tuple[float, float, float, int]:
        """Share of hits, its exact 95 % interval (Clopper & Pearson 1934), and the number of trials."""
        ends = stats.binomtest(self.hits, self.n).proportion_ci(0.95, method="exact")
        return round(self.hits / self.n, 4), round(ends.low, 4), round(ends.high, 4), self.n

    def reaches(self, level: float) -> bool:
        """False where the hits are significantly fewer than that share."""
        return stats.binomtest(self.hits, self.n, level, alternative="less").pvalue > ALARM

    def exceeds(self, level: float) -> bool:
        """True where the hits are significantly more than that share."""
        return stats.binomtest(self.hits, self.n, level, alternative="greater").pvalue <= ALARM


def covered(hits: list[bool]) -> Counted:
    return Counted(sum(map(bool, hits)), len(hits))
