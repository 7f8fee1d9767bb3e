"""Estimates with intervals, paired tests, resampling and nulls, and corrections for several tests.

`intervals` and `resampling` work on tensors and are imported as modules, so that tables load without torch.
"""

from ot_lens.statistics.estimates import BootstrapRatio, Estimate, mean, perplexity, rate, share
from ot_lens.statistics.multiplicity import holm
from ot_lens.statistics.paired import mcnemar, paired_bootstrap

__all__ = [
    "BootstrapRatio",
    "Estimate",
    "holm",
    "mcnemar",
    "mean",
    "paired_bootstrap",
    "perplexity",
    "rate",
    "share",
]
