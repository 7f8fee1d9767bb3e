"""A model that overflows gives logits of NaN or +Inf, whose argmax is some token: an error, not an answer."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from ot_lens.errors import nan_logits
from ot_lens.models.reversible import Reversible


def overflowed(logits: Float[Tensor, "*batch d_vocab"]) -> Bool[Tensor, "*batch"]:
    """Where logits are NaN or +Inf; -Inf is how models rule tokens out."""
    return (logits.isnan() | logits.isposinf()).any(dim=-1)


def no_nan(network: nn.Module, *, last_only: bool) -> Reversible[None]:
    """Raise an ActivationError for logits of NaN or +Inf of any call inside, or of its last position.

    With left padding only the last position is one of a real token in every row.
    """

    def check(_module: nn.Module, _inputs: Any, output: Any) -> None:
        logits = getattr(output, "logits", output)
        bad = int(overflowed(logits[:, -1:] if last_only else logits).any(dim=1).sum())
        if bad:
            raise nan_logits(bad, len(logits))

    return Reversible(lambda changes: changes.after(network, check))
