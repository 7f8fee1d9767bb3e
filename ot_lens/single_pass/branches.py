"""The next token where the residual stream branches off: without a block, with another model's, and so on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.models import TokenBatch, backend
from ot_lens.prompts import Prompt
from ot_lens.single_pass.engine import Reduce, recorded_rows, swept
from ot_lens.single_pass.walk import Plan, Record

# A site, 0 to n_layers, and the stream that enters it instead of the model's own.
Branch = tuple[int, Float[Tensor, "batch pos d"]]


class _Given:
    """In place of an edit: a stream that does not depend on the model's."""

    def __init__(self, values: Float[Tensor, "batch pos d"]) -> None:
        self._values = values

    def __call__(self, x: Float[Tensor, "row batch pos d"]) -> Float[Tensor, "row batch pos d"]:
        return self._values.to(x).expand(x.shape)


def branch_sweep(
    model: Any,
    prompts: Sequence[Prompt | str],
    branches: Callable[[Record, TokenBatch], Sequence[Branch]],
    reduce: Reduce,
    *,
    last: bool = False,
    batch_size: int = 16,
) -> tuple[Float64[Tensor, "branch prompt value"], Float64[Tensor, "prompt value"]]:
    """Reduced next-token logits of every branch of the unedited pass, and of that pass itself.

    `branches` makes them from the record of a batch; with `last` streams hold the last position only.

    Raises:
        SinglePassError: If the model cannot be replayed block by block.
    """

    def read(batch: TokenBatch, record: Record) -> Sequence[Tensor]:
        plans: list[Plan] = [((site, _Given(stream)),) for site, stream in branches(record, batch)]
        return swept(record, [*plans, ()], reduce).unbind(1)

    rows = recorded_rows(backend(model), prompts, read, last=last, batch_size=batch_size)
    values = torch.stack(rows, dim=1)
    return values[:-1], values[-1]
