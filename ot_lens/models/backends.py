"""The kinds of hooked model that ot_lens serves, behind one set of methods."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers import Cache, GenerationConfig, GenerationMixin

from ot_lens.errors import HookError, ModelError, one_of
from ot_lens.models.architectures import hook_name, longrope_border, terminators, unembed
from ot_lens.models.caches import TokensRead, cache_argument, cache_of_everything
from ot_lens.models.hooked import HOOKS, HookedCausalLM, input_device, padding_token, position_ids
from ot_lens.models.reversible import Reversible
from ot_lens.models.stream import INSIDE, check_once, check_sums, inspected

_PROMPT_WIDTH: ContextVar[int | None] = ContextVar("prompt_width", default=None)


@dataclass(frozen=True)
class Call:
    """One forward call as the model sees it."""

    tokens: Int[Tensor, "batch new"] | None  # None if the caller gave embeddings
    mask: Int[Tensor, "batch total"] | None  # None if every token is real
    past: int  # positions already in the KV cache
    prompt_width: int | None  # columns of the prompt, if the caller announced them


Observer = Callable[[Call | None], None]


def announced_width() -> int | None:
    """The width that `prompt_width` announced, if any."""
    return _PROMPT_WIDTH.get()


def prompt_width(width: int) -> Reversible[None]:
    """Announce that the first `width` columns of the sequences run inside are the prompt."""

    def announce(changes: Reversible[None]) -> None:
        changes.change(partial(_PROMPT_WIDTH.set, announced_width()), partial(_PROMPT_WIDTH.set, width))

    return Reversible(announce)


TwoSteps = tuple[Int[Tensor, ""], Float[Tensor, "2 d_vocab"]]


class _HookedModel:
    """What the two kinds of model share."""

    logits: Callable[..., Float[Tensor, "batch kept d_vocab"]]

    def __init__(self, model: Any, hf_model: Any = None) -> None:
        if model.tokenizer is None:
            raise ModelError(f"This {type(model).__name__} has no tokenizer: load it with one.")
        self.model = model
        self.hf_model = hf_model
        self.tokenizer = model.tokenizer
        self.n_layers = int(model.cfg.n_layers)
        self.d_model = int(model.cfg.d_model)
        self.d_vocab = int(model.cfg.d_vocab)
        self.n_ctx = int(model.cfg.n_ctx or 0)
        self.longrope = longrope_border(hf_model) if hf_model is not None else None
        if self.longrope is not None:
            self.n_ctx = min(self.n_ctx or self.longrope, self.longrope)

    def hook_point(self, layer: int, hook: str) -> HookPoint:
        """The hook point of a layer."""
        one_of("hook point", hook, HOOKS, HookError)
        check_layer(layer, self.n_layers)
        name = hook_name(self.model.hook_dict, layer, hook)
        point = self.model.hook_dict.get(name)
        if not isinstance(point, HookPoint):
            raise HookError(
                f"This model has no hook point {name!r}: its layers have none, or none that is known. Use "
                "resid_pre or resid_post."
            )
        if hook in INSIDE:
            check_sums(self, layer, hook)
        return point

    def unpadded_logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits at every position, which the model itself counts."""
        return self.logits(tokens, torch.ones_like(tokens))

    def two_steps(self, tokens: Int[Tensor, "1 pos"], mask: Int[Tensor, "1 pos"]) -> TwoSteps:
        """The next token of a sequence, and the logits before and behind it."""
        before = self.logits(tokens, mask, keep=1)[:, -1]
        token = before.argmax(-1)
        longer = torch.cat([mask, mask[:, -1:]], dim=1)
        behind = self.logits(torch.cat([tokens, token[None]], dim=1), longer, keep=1)[:, -1]
        return token[0], torch.cat([before, behind])

    @property
    def pads(self) -> bool:
        """Whether rows of different lengths may share a batch."""
        return inspected(self).pads

    @property
    def terminators(self) -> tuple[int, ...]:
        """Every token that ends an answer."""
        return terminators(self.hf_model, self.tokenizer)

    @property
    def pad_id(self) -> int:
        """A token to pad with, which is masked."""
        return padding_token(self.tokenizer, self.d_vocab)


class HFBackend(_HookedModel):
    """A model whose computation is Hugging Face's: HookedCausalLM or TransformerBridge."""

    edits_resid_mid = False

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings."""
        return input_device(self.hf_model)

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], keep: int = 0
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """Logits of the last `keep` positions (0: of all)."""
        output = self.hf_model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=position_ids(mask),
            use_cache=False,
            logits_to_keep=keep,
        )
        return output.logits

    def unpadded_logits(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        """As in `_HookedModel`."""
        return self.hf_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits

    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        max_new_tokens: int,
        eos: Sequence[int],
        use_cache: bool = True,
        read: Cache | None = None,
    ) -> Int[Tensor, "batch new"]:
        """Greedy continuation, new tokens only; after an end-of-sequence token the rest is padding.

        `read` is what the model has read of the tokens already, all but the last.
        """
        settings = {"max_new_tokens": max_new_tokens, "eos_token_id": list(eos), "use_cache": use_cache}
        return self._greedy(tokens, mask, settings, read).sequences[:, tokens.shape[1] :]

    def two_steps(self, tokens: Int[Tensor, "1 pos"], mask: Int[Tensor, "1 pos"]) -> TwoSteps:
        """As in `_HookedModel`, with a cache."""
        if not isinstance(self.hf_model, GenerationMixin):
            return super().two_steps(tokens, mask)
        out = self._greedy(tokens, mask, {"max_new_tokens": 2, "output_logits": True})
        return out.sequences[0, tokens.shape[1]], torch.cat(out.logits)

    def _greedy(
        self, tokens: Tensor, mask: Tensor, settings: dict[str, Any], read: Cache | None = None
    ) -> Any:
        """What Hugging Face's `generate` gives with these settings and no others."""
        only = GenerationConfig(
            do_sample=False, pad_token_id=self.pad_id, return_dict_in_generate=True, **settings
        )
        # What is left open, such as a repetition penalty, `generate` takes from the model's settings: this
        # copy, which shares weights and hooks, has none.
        plain = copy(self.hf_model)
        plain.generation_config = GenerationConfig()
        if settings.get("use_cache", True) and read is None:
            read = cache_of_everything(plain)
        cache = {cache_argument(plain): read}
        return plain.generate(input_ids=tokens, attention_mask=mask, generation_config=only, **cache)

    def unembed(self, stream: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_vocab"]:
        """Final norm, unembedding, and what the model does to its logits."""
        return unembed(self.hf_model, stream)

    def watch(self, observer: Observer, changes: Reversible[Any]) -> None:
        """Call `observer` before each forward call, and with None after it, until `changes` are undone."""
        read = TokensRead()

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens = kwargs.get("input_ids", args[0] if args else None)
            past = read.before(kwargs, 0 if tokens is None else tokens.shape[1])
            observer(Call(tokens, kwargs.get("attention_mask"), past, announced_width()))

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            read.after(output)
            observer(None)

        changes.before(self.hf_model, before, with_kwargs=True)
        changes.after(self.hf_model, after)


class HookedTransformerBackend(_HookedModel):
    """A HookedTransformer of transformer-lens 3."""

    edits_resid_mid = True

    @property
    def device(self) -> torch.device:
        """Device of the embedding matrix."""
        return self.model.W_E.device

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], keep: int = 0
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """As in `HFBackend`."""
        return self.model(tokens, attention_mask=mask)[:, -keep:]

    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        max_new_tokens: int,
        eos: Sequence[int],
        use_cache: bool = True,
    ) -> Int[Tensor, "batch new"]:
        """Greedy continuation; HookedTransformer.generate would infer its own mask from the pad token."""
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        cache = (
            TransformerLensKeyValueCache.init_cache(self.model.cfg, self.device, len(tokens))
            if use_cache
            else None
        )
        stops = torch.tensor(list(eos), device=tokens.device)
        done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        width, sequence, step, step_mask = tokens.shape[1], tokens, tokens, mask
        for _ in range(max_new_tokens):
            logits = self.model(step, attention_mask=step_mask, past_kv_cache=cache)[:, -1]
            new = torch.where(done, self.pad_id, logits.argmax(-1))
            sequence = torch.cat([sequence, new[:, None]], dim=1)
            done = done | torch.isin(new, stops)
            if bool(done.all()):
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            step, step_mask = (new[:, None], mask[:, -1:]) if use_cache else (sequence, mask)
        return sequence[:, width:]

    def unembed(self, stream: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_vocab"]:
        """As in `HFBackend`."""
        logits = self.model.unembed(
            self.model.ln_final(stream) if self.model.cfg.normalization_type else stream
        )
        cap = self.model.cfg.output_logits_soft_cap
        return torch.tanh(logits / cap) * cap if cap is not None and cap > 0 else logits

    def watch(self, observer: Observer, changes: Reversible[Any]) -> None:
        """As in `HFBackend`, but inside the model: `run_with_cache` calls `model.forward` directly."""
        tokens: list[Tensor | None] = [None]

        def at_embed(_module: nn.Module, args: tuple[Any, ...]) -> None:
            tokens[0] = args[0]

        def at_block(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            entry = kwargs.get("past_kv_cache_entry")
            past = int(entry.past_keys.shape[1]) if entry is not None else 0
            observer(Call(tokens[0], kwargs.get("attention_mask"), past, announced_width()))

        changes.before(self.model.embed, at_embed)
        changes.before(self.model.blocks[0], at_block, with_kwargs=True)
        changes.after(self.model.blocks[-1], lambda *_: observer(None))


Backend = HFBackend | HookedTransformerBackend


def backend(model: Any) -> Backend:
    """The backend of a hooked model; the model itself is left as it is.

    Raises:
        ModelError: If it is not a hooked model, or a bridge that cannot be served: see `check_stream`.
    """
    if isinstance(model, HookedCausalLM):
        return HFBackend(model, model.hf_model)
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, TransformerBridge):
        bridge = HFBackend(model, model.original_model)
        check_once(bridge)
        return bridge
    if _is_hooked_transformer(model):
        return HookedTransformerBackend(model)
    if hasattr(model, "_orig_mod"):
        raise ModelError(
            "This is the wrapper that torch.compile returns: pass the model that was compiled; its compiled "
            "calls are edited too."
        )
    raise ModelError(
        f"{type(model).__name__} is not a hooked model: pass the result of ot_lens.load_model, a "
        "TransformerBridge or a HookedTransformer."
    )


def _is_hooked_transformer(model: Any) -> bool:
    try:
        from transformer_lens import HookedTransformer
    except ImportError:  # transformer-lens 4
        return False
    return isinstance(model, HookedTransformer)


def check_layer(layer: Any, n_layers: int) -> None:
    """Check that a layer exists."""
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_layers:
        raise HookError(f"Layer {layer!r} does not exist: this model has layers 0-{n_layers - 1}.")
