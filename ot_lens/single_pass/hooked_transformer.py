"""Replay of HookedTransformer blocks (transformer-lens 3)."""

from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from ot_lens.errors import SinglePassError
from ot_lens.models import Reversible, TokenBatch, backend


class HookedTransformerRecord:
    """A recorded forward pass; attributes and methods as in `HuggingFaceRecord`."""

    def __init__(self, model: Any, batch: TokenBatch, *, last: bool) -> None:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        if model.cfg.positional_embedding_type == "shortformer":
            raise SinglePassError("Shortformer adds positions inside attention.")
        self._model, self._last, self._mask = model, last, batch.mask
        device = model.W_E.device
        cache = (
            TransformerLensKeyValueCache.init_cache(model.cfg, device, len(batch.tokens)) if last else None
        )
        streams: list[Tensor] = []

        def listen(changes: Reversible[None]) -> None:
            for block in model.blocks:
                changes.before(block, lambda _module, args: streams.append(args[0]))
            changes.after(model.blocks[-1], lambda _module, _args, output: streams.append(output))

        with Reversible(listen):
            logits = model(batch.tokens, attention_mask=batch.mask, past_kv_cache=cache)
        self.own_logits = logits[:, -1]
        self.streams = [stream[:, -1:] for stream in streams] if last else streams
        self._entries = list(cache.entries) if cache is not None else []

    def block(self, layer: int, rows: Float[Tensor, "row batch pos d"]) -> Float[Tensor, "row batch pos d"]:
        """Run a block on rows."""
        count, batch = rows.shape[:2]
        mask = self._mask.expand(count, *self._mask.shape).flatten(0, 1)
        entry = self._entry(layer, count) if self._last else None
        out = self._model.blocks[layer](rows.flatten(0, 1), past_kv_cache_entry=entry, attention_mask=mask)
        return out.unflatten(0, (count, batch))

    def _entry(self, layer: int, count: int) -> Any:
        from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

        cached = self._entries[layer]
        earlier = (cached.past_keys[:, :-1], cached.past_values[:, :-1])
        keys, values = (x.expand(count, *x.shape).flatten(0, 1) for x in earlier)
        return TransformerLensKeyValueCacheEntry(keys, values, frozen=True)

    def by_prompt(self, stream: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        """A stream as the batch has its tokens."""
        return stream

    def in_stream(self, chosen: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Chosen tokens of the batch, as the stream has them."""
        return chosen

    def logits(self, rows: Float[Tensor, "row batch pos d"]) -> Float[Tensor, "row batch d_vocab"]:
        """Final norm and unembedding at the last position."""
        return backend(self._model).unembed(rows[:, :, -1])
