"""The next token where the residual stream branches off: without a block, with another model's, and so on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.linalg import float64
from ot_lens.models import TokenBatch, backend, batches, evaluating, in_memory
from ot_lens.prompts import Prompt
from ot_lens.single_pass.engine import CPU_TOKENS, MEMORY_BUDGET, Reduce, check_replay
from ot_lens.single_pass.walk import Plan, Record, replayed, run, walk

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
    served = backend(model)
    parts: list[tuple[tuple[int, ...], tuple[Tensor, Tensor]]] = []

    def sweep(batch: TokenBatch) -> tuple[Tensor, Tensor]:
        record = run(served, batch, last=last)
        check_replay(record)
        own = float64(record.own_logits)
        return _branched(record, branches(record, batch), own, reduce), reduce(own[None], own)[0].cpu()

    with evaluating(served.model):
        for whole in batches(served, prompts, batch_size):
            parts += [(batch.indices, found) for batch, found in in_memory(sweep, whole)]
    order = torch.tensor([index for indices, _ in parts for index in indices]).argsort()
    branched, own = zip(*(found for _, found in parts), strict=True)
    return torch.cat(branched, dim=1)[:, order], torch.cat(own)[order]


def _branched(
    record: Record, branches: Sequence[Branch], own: Float64[Tensor, "batch d_vocab"], reduce: Reduce
) -> Float64[Tensor, "branch batch value"]:
    results: dict[int, Tensor] = {}
    plans: list[Plan] = [((site, _Given(stream)),) for site, stream in branches]
    cells = record.streams[0].shape[:2].numel()
    chunk = max(1, CPU_TOKENS // cells)
    if record.streams[0].device.type != "cpu":
        chunk = max(1, MEMORY_BUDGET // (16 * record.streams[0].numel() * record.streams[0].element_size()))

    def finish(numbers: list[int], rows: Float[Tensor, "row batch pos d"]) -> None:
        logits = replayed(record.logits, rows).to(own.device).double()
        results.update(zip(numbers, reduce(logits, own).cpu(), strict=True))

    walk(record, plans, finish, chunk=chunk)
    return torch.stack([results[number] for number in range(len(branches))])
