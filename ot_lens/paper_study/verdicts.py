"""When a comparison supports a claim: by its interval, its corrected p-value and a margin."""

import math

# Five percentage points: a smaller difference of rates is no gain and no loss.
MARGIN = 0.05
# Least agreement beyond chance that is called substantial (Landis & Koch 1977).
SUBSTANTIAL = 0.6
SIGNIFICANT = 0.05
MORE, NO_LOSS, SAME, AGREE = KINDS = ("more", "no loss", "same", "agree")
SUPPORTED, NOT_SUPPORTED, CANNOT_TELL = "supported", "not supported", "cannot tell"


def margin_of(kind: str) -> float:
    """The margin of a kind of claim; of agreement, the least that is enough."""
    return SUBSTANTIAL if kind == AGREE else MARGIN


def verdict(kind: str, low: float, high: float, p_holm: float) -> str:
    """What the interval of a difference says of a claim.

    - "more": the first is larger. Supported if the interval is above 0 and the corrected test agrees, not
      supported if it ends below the margin.
    - "no loss": the first is not smaller by the margin. Supported if the interval is above minus the margin,
      not supported if it is below 0.
    - "same": neither differs from the other. Supported if the interval lies within the margin on both sides,
      not supported if it lies on one side of 0 and the corrected test agrees.
    - "agree": supported if the interval is above the margin, not supported if it is below.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return CANNOT_TELL
    margin, tested = margin_of(kind), p_holm < SIGNIFICANT
    supported, refuted = {
        MORE: (low > 0 and tested, high < margin),
        NO_LOSS: (low > -margin, high < 0),
        SAME: (-margin < low and high < margin, (low > 0 or high < 0) and tested),
        AGREE: (low > margin, high < margin),
    }[kind]
    return SUPPORTED if supported else NOT_SUPPORTED if refuted else CANNOT_TELL
