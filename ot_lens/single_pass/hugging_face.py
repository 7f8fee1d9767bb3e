"""Replay of Hugging Face decoder layers: the layers themselves, with the arguments the model passed."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from ot_lens.errors import SinglePassError
from ot_lens.models import Reversible, TokenBatch
from ot_lens.models.architectures import PER_POSITION, decoder_layers, unembed
from ot_lens.models.caches import cache_argument, cache_in
from ot_lens.models.hooked import position_ids

# Arguments that are the same for every row; a tensor or a container might not be.
PLAIN = (type(None), bool, int, float, str)


class Prefix:
    """A cache that gives a layer the keys and values of earlier positions, and stores nothing."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def of(self, sequences: Int[Tensor, " row"]) -> "Prefix":
        """Of the rows' sequences."""
        return Prefix(self.keys[sequences], self.values[sequences])

    def update(self, keys: Tensor, values: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """What a cache returns to attention."""
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


class HuggingFaceRecord:
    """A recorded forward pass of a Hugging Face model."""

    own_logits: Float[Tensor, "batch d_vocab"]  # at the last position
    streams: list[Float[Tensor, "batch pos d"]]  # entering each block, and leaving the last

    def __init__(
        self,
        hf_model: Any,
        batch: TokenBatch,
        *,
        last: bool = False,
        start: int = 0,
        read: DynamicCache | None = None,
    ) -> None:
        """Rows cover the positions from `start` on, or the last one; `read` holds those before, if given."""
        self._hf_model, self._last, self._start = hf_model, last, batch.tokens.shape[1] - 1 if last else start
        self._layers = decoder_layers(hf_model)
        self._calls: list[dict[str, Any]] = []
        self._mask = batch.mask
        # How many of the positions that the model is called with come before the rows.
        skipped = self._start if read is None else 0
        self._own = slice(skipped, None)
        earlier = None if read is None else [Prefix(layer.keys, layer.values) for layer in read.layers]
        cache = read or (DynamicCache() if self._start or last else None)
        called = slice(self._start - skipped, None)
        logits, streams = self._record(
            input_ids=batch.tokens[:, called],
            attention_mask=batch.mask,
            position_ids=position_ids(batch.mask)[:, called],
            use_cache=cache is not None,
            logits_to_keep=1,
            **{cache_argument(hf_model): cache},
        )
        self.own_logits = logits[:, -1]
        # A slice would keep all of a stream alive.
        self.streams = [stream[:, self._own].clone() if skipped else stream for stream in streams]
        layers = range(len(self._layers)) if cache is not None else ()
        self._prefixes = earlier or [_prefix(cache, i, self._start) for i in layers]

    def _record(self, **inputs: Any) -> tuple[Tensor, list[Tensor]]:
        """The logits of a call of the model, and the stream entering each block and leaving the last."""
        streams: list[Tensor] = []
        with Reversible(partial(self._listen, streams)):
            logits = self._hf_model(**inputs).logits
        if len(streams) != len(self._layers) + 1:
            raise SinglePassError("The model does not call each decoder layer once.")
        return logits, streams

    def _listen(self, streams: list[Tensor], changes: Reversible[None]) -> None:
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rest = dict(kwargs)
            hidden = args[0] if args else rest.pop("hidden_states")
            if len(args) > 1:
                raise SinglePassError("A decoder layer takes more than the hidden states by position.")
            unknown = [k for k, v in rest.items() if k not in PER_POSITION and not isinstance(v, PLAIN)]
            if unknown:
                raise SinglePassError(f"A decoder layer takes {unknown[0]!r}, whose meaning is unknown.")
            streams.append(hidden)
            self._calls.append(rest)

        for layer in self._layers:
            changes.before(layer, before, with_kwargs=True)
        changes.after(self._layers[-1], lambda _module, _args, output: streams.append(hidden_of(output)))

    @property
    def nbytes(self) -> int:
        """Bytes of the streams, and of the keys and values."""
        kept = [x for prefix in self._prefixes for x in (prefix.keys, prefix.values)]
        return sum(x.numel() * x.element_size() for x in [*self.streams, *kept])

    def prefixes(self, index: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a sequence before the rows, without padding, by layer."""
        padding = int((self._mask[index] == 0).sum())
        return [
            (prefix.keys[index, :, padding:].clone(), prefix.values[index, :, padding:].clone())
            for prefix in self._prefixes
        ]

    def block(self, layer: int, rows: Float[Tensor, "row batch pos d"]) -> Float[Tensor, "row batch pos d"]:
        """Run a block on rows."""
        return self._block_last(layer, rows) if self._last else self._block_all(layer, rows)

    def block_of_model(self, hf_model: Any, layer: int) -> Float[Tensor, "batch pos d"]:
        """What another model's block makes of the recorded stream; all positions must be recorded."""
        block = decoder_layers(hf_model)[layer]
        return hidden_of(block(self.streams[layer], **self._calls[layer]))

    def _block_last(
        self, layer: int, rows: Float[Tensor, "row batch one d"]
    ) -> Float[Tensor, "row batch one d"]:
        """Rows become queries of one sequence per prompt, so that no cached key is repeated for a row."""
        prefix, call = self._prefixes[layer], self._calls[layer]
        queries = rows[:, :, 0].transpose(0, 1).contiguous()  # as experts want it
        count = queries.shape[1]
        kwargs = {**call, cache_in(call): prefix, "attention_mask": self._last_mask(layer, queries)}
        if "position_ids" in call:
            kwargs["position_ids"] = _last_column(call["position_ids"], 1, count)
        if "position_embeddings" in call:
            kwargs["position_embeddings"] = tuple(
                _last_column(p, -2, count) for p in call["position_embeddings"]
            )
        if "cache_position" in call:
            kwargs["cache_position"] = _last_column(call["cache_position"], 0, count)
        return hidden_of(self._layers[layer](queries, **kwargs)).transpose(0, 1)[:, :, None]

    def _last_mask(self, layer: int, queries: Float[Tensor, "batch row d"]) -> Tensor:
        """The last position's row of the model's mask for the prefix, a diagonal for the rows themselves."""
        batch, count = queries.shape[:2]
        mask = self._calls[layer].get("attention_mask")
        if mask is None:
            earlier = self._mask[:, None, None, :-1].bool()
        elif mask.ndim == 4:
            earlier = mask[:, :, -1:, :-1]
        else:
            raise SinglePassError(f"A decoder layer takes an attention mask of {mask.ndim} dimensions.")
        own = torch.eye(count, dtype=torch.bool, device=earlier.device)[None, None].expand(batch, 1, -1, -1)
        earlier = earlier.expand(batch, -1, count, -1)
        if earlier.dtype == torch.bool:
            return torch.cat([earlier, own], dim=-1)
        hidden = torch.finfo(earlier.dtype).min
        additive = torch.zeros(own.shape, dtype=earlier.dtype, device=own.device).masked_fill(~own, hidden)
        return torch.cat([earlier, additive], dim=-1)

    def _block_all(
        self, layer: int, rows: Float[Tensor, "row batch pos d"]
    ) -> Float[Tensor, "row batch pos d"]:
        count, batch = rows.shape[:2]
        kwargs = dict(self._calls[layer])
        for name in ("attention_mask", "position_ids"):
            if kwargs.get(name) is not None:
                kwargs[name] = _repeat(kwargs[name], count, batch)
        if "position_embeddings" in kwargs:
            kwargs["position_embeddings"] = tuple(
                _repeat(p, count, batch) for p in kwargs["position_embeddings"]
            )
        return hidden_of(self._layers[layer](rows.flatten(0, 1), **kwargs)).unflatten(0, (count, batch))

    def block_of(
        self, layer: int, rows: Float[Tensor, "row pos d"], sequences: Int[Tensor, " row"]
    ) -> Float[Tensor, "row pos d"]:
        """Run a block on rows, each of which belongs to one of the batch's sequences."""
        kwargs = {**self._calls[layer], "attention_mask": self._mask_of(layer, sequences)}
        kwargs[cache_in(kwargs)] = self._prefixes[layer].of(sequences) if self._start else None
        if "position_ids" in kwargs:
            position_ids = _of_rows(kwargs["position_ids"], sequences, len(self._mask))
            kwargs["position_ids"] = position_ids[:, self._own]
        if "position_embeddings" in kwargs:
            embeddings = kwargs["position_embeddings"]
            kwargs["position_embeddings"] = tuple(
                _of_rows(p, sequences, len(self._mask))[..., self._own, :] for p in embeddings
            )
        if "cache_position" in kwargs:
            kwargs["cache_position"] = kwargs["cache_position"][self._own]
        return hidden_of(self._layers[layer](rows, **kwargs))

    def _mask_of(self, layer: int, sequences: Int[Tensor, " row"]) -> Tensor:
        """The rows' part of the model's mask; where it passed none, every real earlier position is seen."""
        mask = self._calls[layer].get("attention_mask")
        if mask is not None and mask.ndim != 4:
            raise SinglePassError(f"A decoder layer takes an attention mask of {mask.ndim} dimensions.")
        if mask is not None:
            return _of_rows(mask, sequences, len(self._mask))[:, :, self._own]
        width = self._mask.shape[1]
        causal = torch.ones(width, width, dtype=torch.bool, device=self._mask.device).tril()[self._start :]
        return causal & self._mask.bool()[sequences][:, None, None, :]

    def by_prompt(self, stream: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        """A stream as the batch has its tokens."""
        return stream

    def in_stream(self, chosen: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Chosen tokens of the batch, as the stream has them."""
        return chosen

    def logits(self, rows: Float[Tensor, "row batch pos d"]) -> Float[Tensor, "row batch d_vocab"]:
        """Final norm and unembedding at the last position."""
        return unembed(self._hf_model, rows[:, :, -1])

    def unembed(self, rows: Float[Tensor, "row pos d"]) -> Float[Tensor, "row pos d_vocab"]:
        """Final norm and unembedding at every position."""
        return unembed(self._hf_model, rows)


def _prefix(cache: DynamicCache | None, layer: int, end: int) -> Prefix:
    assert cache is not None
    cached = cache.layers[layer]
    return Prefix(cached.keys[:, :, :end].clone(), cached.values[:, :, :end].clone())


def hidden_of(output: Any) -> Tensor:
    """The stream that a block returns, alone or in a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _last_column(x: Tensor, dim: int, count: int) -> Tensor:
    last = x.narrow(dim, x.shape[dim] - 1, 1)
    shape = list(last.shape)
    shape[dim] = count
    return last.expand(shape)


def _of_rows(x: Tensor, sequences: Int[Tensor, " row"], batch: int) -> Tensor:
    """The entry of each row's sequence, unless one entry serves the whole batch."""
    return x[sequences] if x.shape[0] == batch else x


def _repeat(x: Tensor, count: int, batch: int) -> Tensor:
    """Repeat along the batch axis, unless one entry serves the whole batch."""
    if x.shape[0] != batch:
        return x
    return x.expand(count, *x.shape).flatten(0, 1)
