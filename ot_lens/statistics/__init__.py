"""Estimates with intervals, paired tests, resampling and nulls, and corrections for several tests.

`intervals` and `resampling` work on tensors and are imported as modules, so that tables load without torch.
"""

from ot_lens.statistics.estimates import BootstrapRatio as BootstrapRatio
from ot_lens.statistics.estimates import Estimate as Estimate
from ot_lens.statistics.estimates import mean as mean
from ot_lens.statistics.estimates import perplexity as perplexity
from ot_lens.statistics.estimates import rate as rate
from ot_lens.statistics.estimates import share as share
from ot_lens.statistics.hypotheses import holm as holm
from ot_lens.statistics.hypotheses import mcnemar as mcnemar
from ot_lens.statistics.hypotheses import paired_bootstrap as paired_bootstrap
from ot_lens.statistics.paired import rate_difference as rate_difference
from ot_lens.statistics.paired import sign_flip as sign_flip
