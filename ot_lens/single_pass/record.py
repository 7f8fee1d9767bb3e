"""What one forward pass leaves behind for the walk, and how its blocks are run again on other rows."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Record(Protocol):
    """One forward pass of a batch, replayable block by block with rows substituted.

    Rows are [row, batch, position, d_model]; with scope "last" there is one position, the prompt's last.

    Attributes:
        streams: The residual stream entering each block, and the one leaving the last: [batch, position, d].
        own_logits: The model's own logits at the last position [batch, d_vocab].
    """

    streams: list[Float[Tensor, "batch pos d"]]
    own_logits: Float[Tensor, "batch d_vocab"]

    def block(self, layer: int, rows: Float[Tensor, "row batch pos d"]) -> Float[Tensor, "row batch pos d"]:
        """Run a block on rows."""
        ...

    def logits(self, rows: Float[Tensor, "row batch pos d"]) -> Float[Tensor, "row batch d_vocab"]:
        """Final norm and unembedding at the last position."""
        ...
