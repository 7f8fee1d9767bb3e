"""What a model has read of prompts before their last token, which no edit changes: read once, used often."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from ot_lens.models import HFBackend, TokenBatch, batches_of_rows, evaluating, in_memory
from ot_lens.single_pass.hugging_face import HuggingFaceRecord
from ot_lens.single_pass.walk import replayed

# Bytes of the keys and values of all prompts.
BUDGET = {"cpu": 2**29}
ON_A_DEVICE = 2**32

Layers = list[tuple[Tensor, Tensor]]


class Prefixes:
    """Keys and values of some prompts without their last tokens."""

    def __init__(self, served: HFBackend, prompts: Sequence[Sequence[int]], batch_size: int) -> None:
        self._served, self._prompts = served, prompts
        self._rows = self._read_all(batch_size)

    def cache(self, numbers: Sequence[int], width: int) -> DynamicCache | None:
        """A new cache of some prompts, padded left to a width; None where there is no room."""
        if width == 1 or self._rows is None:
            return None
        rows = [self._rows[number] for number in numbers]
        cache = DynamicCache()
        for layer in range(len(rows[0])):
            keys, values = (
                torch.stack([_padded(row[layer][part], width - 1) for row in rows]) for part in (0, 1)
            )
            cache.update(keys, values, layer)
        return cache

    def _read_all(self, batch_size: int) -> dict[int, Layers] | None:
        rows: dict[int, Layers] = {}
        total, size = sum(map(len, self._prompts)), 0
        budget = BUDGET.get(self._served.device.type, ON_A_DEVICE)
        with evaluating(self._served.model):
            for whole in batches_of_rows(self._served, self._prompts, batch_size):
                for batch, found in in_memory(self._read, whole):
                    rows |= zip(batch.indices, found, strict=True)
                    size += sum(x.numel() * x.element_size() for row in found for pair in row for x in pair)
                if size * total > budget * sum(len(self._prompts[number]) for number in rows):
                    return None
        return rows

    def _read(self, batch: TokenBatch) -> list[Layers]:
        record = replayed(HuggingFaceRecord, self._served.hf_model, batch, last=True)
        return [record.prefixes(index) for index in range(len(batch.indices))]


def _padded(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, width - x.shape[-2], 0))
