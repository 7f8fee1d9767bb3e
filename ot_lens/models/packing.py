"""Rows of tokens that begin alike as one sequence, so that nothing is padded or read twice."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Rows of tokens as one sequence: the prefix that they share once, then the rest of each."""

    ids: Int[Tensor, "1 pos"]
    positions: Int[Tensor, "1 pos"]
    mask: Bool[Tensor, "1 1 pos pos"]  # what each token sees
    ends: tuple[int, ...]  # of each row

    def additive_mask(self, dtype: torch.dtype) -> Float[Tensor, "1 1 pos pos"]:
        """The mask as what is added to attention scores."""
        return torch.zeros(self.mask.shape, dtype=dtype).masked_fill(~self.mask, -torch.inf)


def pack(prefix: Sequence[int], rests: Sequence[Sequence[int]]) -> Packed:
    """Each token attends to the prefix and to its own row only."""
    lengths = torch.tensor([len(prefix), *map(len, rests)])
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    ends = lengths.cumsum(0)
    index = torch.arange(len(row))
    mask = (index[:, None] >= index) & ((row[:, None] == row) | (row == 0))
    positions = index - (ends - lengths)[row] + len(prefix) * (row > 0)
    ids = torch.tensor([*prefix, *(token for rest in rests for token in rest)])
    return Packed(ids[None], positions[None], mask[None, None], tuple(ends[1:].tolist()))
