"""A recorded pass of prompts that begin alike, such as with a system prompt: what they share is read once."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ot_lens.errors import SinglePassError
from ot_lens.models import Backend, HFBackend, TokenBatch, common_prefix, evaluating, token_batch
from ot_lens.models.architectures import decoder_layers, unembed
from ot_lens.models.packing import Packed, pack
from ot_lens.single_pass.hugging_face import HuggingFaceRecord
from ot_lens.single_pass.walk import difference_of, replayed, rounding

# Tokens of one sequence: each attends to all of them before the mask hides most.
MOST_TOKENS = {"cpu": 512}
ON_A_DEVICE = 4096
# The share of all tokens that packing must save to be worth it.
LEAST_SAVED = 0.25
CHECKED = 4  # prompts that are read both ways before the packed one is trusted


class PackedRecord(HuggingFaceRecord):
    """A recorded pass of a batch as one sequence: streams are [1, pos, d], logits [batch, d_vocab]."""

    def __init__(self, hf_model: Any, batch: TokenBatch) -> None:
        packed, self._index = _packed(batch)
        inputs, device = _inputs(packed, hf_model), batch.tokens.device
        self._hf_model, self._layers = hf_model, decoder_layers(hf_model)
        self._calls, self._prefixes, self._last, self._start = [], [], False, 0
        self._mask, self._real = torch.ones_like(packed.ids, device=device), batch.mask.bool()
        self._last_tokens = inputs["logits_to_keep"]
        logits, self.streams = self._record(**inputs)
        self.own_logits = logits[0]

    def logits(self, rows: Float[Tensor, "row one pos d"]) -> Float[Tensor, "row batch d_vocab"]:
        """Final norm and unembedding at the last position of each prompt."""
        return unembed(self._hf_model, rows[:, 0, self._last_tokens.to(rows.device)])

    def by_prompt(self, stream: Float[Tensor, "one pos d"]) -> Float[Tensor, "batch width d"]:
        """A stream as the batch has its tokens; padding has the stream of the first token."""
        return stream[0, self._index.to(stream.device)]

    def in_stream(self, chosen: Bool[Tensor, "batch width"]) -> Bool[Tensor, "one pos"]:
        """Chosen tokens of the batch, as the stream has them."""
        found = torch.zeros_like(self._mask, dtype=torch.bool)
        found[0, self._index[chosen & self._real]] = True
        return found


def packed_logits(served: HFBackend, batch: TokenBatch) -> Float[Tensor, "batch d_vocab"]:
    """Next-token logits of a batch as one sequence, with gradients, under active edits of all tokens."""
    logits: Tensor = served.hf_model(**_inputs(_packed(batch)[0], served.hf_model)).logits
    return logits[0]


def parts(served: HFBackend, batch: TokenBatch) -> Iterator[TokenBatch]:
    """The batch in parts that are short enough to be packed."""
    most = MOST_TOKENS.get(served.device.type, ON_A_DEVICE)
    if len(batch.indices) > 1 and _packed(batch)[0].ids.shape[1] > most:
        for half in batch.halves():
            yield from parts(served, half)
    else:
        yield batch


def packing(served: Backend, rows: Sequence[Sequence[int]]) -> HFBackend | None:
    """The model, if packing prompts saves enough and it reads a few of the longest the same way.

    Windows count places of a packed sequence, and other layers than attention see all of it: such models
    are found out here. Edits of all tokens do not hinder packing.
    """
    return served if isinstance(served, HFBackend) and _packable(served, rows) else None


def _packable(served: HFBackend, rows: Sequence[Sequence[int]]) -> bool:
    shared = len(common_prefix([row[:-1] for row in rows]))
    if shared * (len(rows) - 1) < LEAST_SAVED * sum(map(len, rows)):
        return False
    few = token_batch(served, sorted(rows, key=len)[-CHECKED:])
    with evaluating(served.model):
        try:
            packed = replayed(PackedRecord, served.hf_model, few)
        except SinglePassError:
            return False
        own = served.logits(few.tokens, few.mask, keep=1)[:, -1]
    return difference_of(packed.own_logits, own) <= rounding(own.dtype)


def _packed(batch: TokenBatch) -> tuple[Packed, Int[Tensor, "batch width"]]:
    """A batch as one sequence, and the place of each of its tokens there; 0 for padding."""
    rows = [row[mask.bool()].tolist() for row, mask in zip(batch.tokens, batch.mask, strict=True)]
    prefix = common_prefix([row[:-1] for row in rows])
    packed = pack(prefix, [row[len(prefix) :] for row in rows])
    index = torch.zeros_like(batch.tokens)
    for number, (row, end) in enumerate(zip(rows, packed.ends, strict=True)):
        rest = len(row) - len(prefix)
        index[number, -len(row) :] = torch.cat([torch.arange(len(prefix)), torch.arange(end - rest, end)])
    return packed, index


def _inputs(packed: Packed, hf_model: Any) -> dict[str, Any]:
    """A call of the model that reads a packed sequence and gives the logits at the end of each row."""
    inputs = {
        "input_ids": packed.ids,
        "attention_mask": packed.additive_mask(hf_model.dtype),
        "position_ids": packed.positions,
        "logits_to_keep": torch.tensor(packed.ends) - 1,
    }
    return {"use_cache": False, **{name: value.to(hf_model.device) for name, value in inputs.items()}}
