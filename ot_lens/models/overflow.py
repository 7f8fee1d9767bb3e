"""A model that overflows gives NaN logits, and the argmax of NaN is some token: an error, not an answer."""

from typing import Any

from torch import nn

from ot_lens.errors import nan_logits
from ot_lens.models.reversible import Reversible


def no_nan(network: nn.Module, *, last_only: bool) -> Reversible[None]:
    """Raise an ActivationError for NaN logits of any call inside, or of its last position.

    With left padding only the last position is one of a real token in every row.
    """

    def check(_module: nn.Module, _inputs: Any, output: Any) -> None:
        logits = getattr(output, "logits", output)
        bad = int((logits[:, -1:] if last_only else logits).isnan().flatten(1).any(dim=1).sum())
        if bad:
            raise nan_logits(bad, len(logits))

    return Reversible(lambda changes: changes.after(network, check))
