"""A walk whose rows are the last tokens of prompts, with the stream that leaves a block changed at some.

A change at the token -k of a prompt reaches its last k tokens only, in the blocks above. So a row holds k
tokens, which attend to the cached keys and values of the earlier ones; rows of one prompt run as one
sequence, each seeing itself alone, and no cached key is repeated for a row.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from transformers import DynamicCache

from ot_lens.errors import SinglePassError
from ot_lens.models import HFBackend, TokenBatch
from ot_lens.models.architectures import decoder_layers, unembed
from ot_lens.models.caches import cache_argument, cache_in
from ot_lens.models.hooked import position_ids
from ot_lens.single_pass.hugging_face import HuggingFaceRecord, Prefix, hidden_of
from ot_lens.single_pass.walk import difference_of, replayed, rounding

# Tokens of one call of a block, and of the rows of one prompt in it, each of which is masked from the others.
CPU_TOKENS, ON_A_DEVICE = 1024, 2**14
WIDEST = 96
# Bytes of the logits that are read at a time.
LOGITS = {"cpu": 2**26}
LOGITS_ON_A_DEVICE = 2**30

Reduce = Callable[[Float[Tensor, "batch row d_vocab"], Float[Tensor, "batch d_vocab"]], Tensor]


@dataclass(frozen=True, eq=False)
class Change:
    """Some of the last tokens of each prompt, whose streams are changed together."""

    mask: Bool[Tensor, "variant batch pos"]  # a variant may have less to change them to
    extent: int  # from the first of them to the prompt's end

    @classmethod
    def of(cls, mask: Bool[Tensor, "variant batch pos"]) -> "Change":
        """The change of these tokens."""
        columns = mask.flatten(0, 1).any(dim=0)
        first = int(columns.int().argmax()) if bool(columns.any()) else len(columns)
        return cls(mask, len(columns) - first)


class SuffixRecord(HuggingFaceRecord):
    """A recorded pass of a batch; streams [batch, pos, d] hold the last `count` tokens."""

    def __init__(self, served: HFBackend, batch: TokenBatch, count: int) -> None:
        self._hf_model, self._layers = served.hf_model, decoder_layers(served.hf_model)
        self._calls, self._mask, self._width = [], batch.mask, batch.tokens.shape[1]
        self._masks: dict[tuple[int, int, int], Tensor] = {}
        cache = DynamicCache()
        logits, streams = self._record(
            input_ids=batch.tokens,
            attention_mask=batch.mask,
            position_ids=position_ids(batch.mask),
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(served.hf_model): cache},
        )
        self.own_logits = logits[:, -1]
        self.streams = [stream[:, -count:].clone() for stream in streams]
        self._prefixes = [Prefix(layer.keys, layer.values) for layer in cache.layers]

    def block(self, layer: int, rows: Float[Tensor, "batch row pos d"]) -> Float[Tensor, "batch row pos d"]:
        """Run a block on rows of the last tokens."""
        count, k = rows.shape[1:3]
        call, prefix, earlier = self._calls[layer], self._prefixes[layer], self._width - k
        kwargs = {
            **call,
            cache_in(call): Prefix(prefix.keys[:, :, :earlier], prefix.values[:, :, :earlier]),
            "attention_mask": self._suffix_mask(layer, count, k),
        }
        if "position_ids" in call:
            kwargs["position_ids"] = call["position_ids"][:, -k:].repeat(1, count)
        if "position_embeddings" in call:
            kwargs["position_embeddings"] = tuple(
                p[..., -k:, :].repeat(*[1] * (p.ndim - 2), count, 1) for p in call["position_embeddings"]
            )
        if "cache_position" in call:
            kwargs["cache_position"] = call["cache_position"][-k:].repeat(count)
        return hidden_of(self._layers[layer](rows.flatten(1, 2), **kwargs)).unflatten(1, (count, k))

    def head(self, rows: Float[Tensor, "batch row d"]) -> Float[Tensor, "batch row d_vocab"]:
        """Final norm and unembedding."""
        return unembed(self._hf_model, rows)

    def _suffix_mask(self, layer: int, count: int, k: int) -> Tensor:
        """The last rows of the model's mask: for the earlier tokens, and on the diagonal for the rows."""
        mask = self._calls[layer].get("attention_mask")
        key = id(mask), count, k
        if key not in self._masks:
            self._masks[key] = _tiled(self._of_model(mask, k), count, k)
        return self._masks[key]

    def _of_model(self, mask: Tensor | None, k: int) -> Tensor:
        if mask is None:
            causal = torch.ones(self._width, self._width, dtype=torch.bool, device=self._mask.device).tril()
            return causal[-k:] & self._mask.bool()[:, None, None, :]
        if mask.ndim != 4:
            raise SinglePassError(f"A decoder layer takes an attention mask of {mask.ndim} dimensions.")
        return mask[:, :, -k:]


def suffix_sweep(
    record: SuffixRecord,
    changes: Sequence[Change],
    changed: Sequence[Float[Tensor, "variant batch pos d"]],
    reduce: Reduce,
) -> Float64[Tensor, "variant layer change batch value"]:
    """Reduced next-token logits with the streams that leave each block changed, at the tokens of each change.

    `changed` holds, by layer, the streams that are put in the place of the block's own. NaN where a change
    has no token.
    """
    n_layers = len(record.streams) - 1
    own = record.own_logits
    values: Tensor | None = None
    for extent in sorted({change.extent for change in changes} - {0}):
        numbers = [number for number, change in enumerate(changes) if change.extent == extent]
        masks = torch.stack([changes[number].mask[..., -extent:] for number in numbers])
        last = _last_tokens(record, masks, changed)
        found = _reduced(record, last, reduce).unflatten(1, (n_layers, len(numbers), -1))
        if values is None:
            shape = (masks.shape[1], n_layers, len(changes), len(own), found.shape[-1])
            values = torch.full(shape, torch.nan, dtype=torch.float64)
        values[:, :, numbers] = found.permute(3, 1, 2, 0, 4)
    if values is None:
        raise SinglePassError("There are no tokens to change.")
    # Above the last block a token reaches nothing but its own logits: no rounding is to look like an effect.
    reaching = torch.stack([change.mask[..., -1] for change in changes], dim=1).cpu()[..., None]
    values[:, -1] = torch.where(reaching, values[:, -1], reduce(own[:, None], own)[:, 0].cpu())
    exists = torch.stack([change.mask.any(dim=-1) for change in changes], dim=1).cpu()
    return values.masked_fill(~exists[:, None, :, :, None], torch.nan)


def check_replay(record: SuffixRecord) -> None:
    """Rows without a change, two of every prompt, must reproduce the model's logits."""
    rows = record.streams[0][:, None].expand(-1, 2, -1, -1)
    for layer in range(len(record.streams) - 1):
        rows = replayed(record.block, layer, rows)
    logits = replayed(record.head, rows[:, :, -1]).transpose(0, 1)
    difference = difference_of(logits, record.own_logits)
    if not difference <= rounding(record.own_logits.dtype):
        raise SinglePassError(f"Replayed logits differ from the model's by {difference:.1e}.")


def _last_tokens(
    record: SuffixRecord,
    masks: Bool[Tensor, "change variant batch pos"],
    changed: Sequence[Float[Tensor, "variant batch whole d"]],
) -> Float[Tensor, "batch row d"]:
    """The last token's stream at the top; rows by layer, change and variant."""
    n_layers, (n_changes, n_variants, batch, k) = len(record.streams) - 1, masks.shape
    each = n_changes * n_variants
    stream = record.streams[0]
    rows = stream.new_empty(batch, n_layers * each, k, stream.shape[-1])
    for layer in range(n_layers):
        stream = record.streams[layer + 1]
        rows = rows.to(stream.device)  # a model may be spread over devices
        for part in _parts(layer * each, batch, k, stream.device.type):
            rows[:, part] = replayed(record.block, layer, rows[:, part])
        new = changed[layer][..., -k:, :].to(stream)
        joined = torch.where(masks[..., None].to(stream.device), new, stream[:, -k:])
        rows[:, layer * each : (layer + 1) * each] = joined.flatten(0, 1).transpose(0, 1)
    return rows[:, :, -1]


def _parts(count: int, batch: int, k: int, device: str) -> Iterator[slice]:
    tokens = CPU_TOKENS if device == "cpu" else ON_A_DEVICE
    size = max(1, min(tokens // (batch * k), WIDEST // k))
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _reduced(
    record: SuffixRecord, last: Float[Tensor, "batch row d"], reduce: Reduce
) -> Float64[Tensor, "batch row value"]:
    own = record.own_logits
    budget = LOGITS.get(own.device.type, LOGITS_ON_A_DEVICE)
    size = max(1, budget // (8 * own.numel()))
    parts = []
    for rows in last.split(size, dim=1):
        logits = replayed(record.head, rows).to(own.device)
        parts.append(reduce(logits, own).cpu())
    return torch.cat(parts, dim=1)


def _tiled(mask: Tensor, count: int, k: int) -> Tensor:
    """A mask [batch, 1, k, total] for `count` rows side by side, none of which sees another."""
    earlier, own = mask[..., :-k].repeat(1, 1, count, 1), mask[..., -k:]
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    apart = own.new_full((*own.shape[:2], count, k, count, k), hidden)
    for row in range(count):
        apart[:, :, row, :, row] = own
    return torch.cat([earlier, apart.flatten(4, 5).flatten(2, 3)], dim=-1)
