"""HookedTransformer models of transformer-lens 3."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from ot_lens.errors import HookError, ModelError
from ot_lens.models.changes import Changes
from ot_lens.models.protocol import Call, announced_width, check_hook, pad_id


class HookedTransformerBackend:
    """A HookedTransformer of transformer-lens 3."""

    edits_resid_mid = True

    def __init__(self, model: Any) -> None:
        if model.tokenizer is None:
            raise ModelError("this HookedTransformer has no tokenizer: call model.set_tokenizer(...) first.")
        self.model = model
        self.tokenizer = model.tokenizer
        self.n_layers = int(model.cfg.n_layers)
        self.d_model = int(model.cfg.d_model)
        self.d_vocab = int(model.cfg.d_vocab)
        self.n_ctx = int(model.cfg.n_ctx)

    @property
    def device(self) -> torch.device:
        """Device of the embedding matrix."""
        return self.model.W_E.device

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], keep: int = 0
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """See `Backend.logits`."""
        return self.model(tokens, attention_mask=mask)[:, -keep:]

    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        max_new_tokens: int,
        eos: Sequence[int],
        use_cache: bool = True,
    ) -> Int[Tensor, "batch new"]:
        """See `Backend.generate`.

        HookedTransformer.generate infers its mask from the pad token and so cannot be handed ours: the
        greedy loop is written out here, with the mask passed at every step.
        """
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
            new = torch.where(done, pad_id(self.tokenizer), logits.argmax(-1))
            sequence = torch.cat([sequence, new[:, None]], dim=1)
            done = done | torch.isin(new, stops)
            if bool(done.all()):
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            step, step_mask = (new[:, None], mask[:, -1:]) if use_cache else (sequence, mask)
        return sequence[:, width:]

    def hook_point(self, layer: int, hook: str) -> HookPoint:
        """See `Backend.hook_point`.

        Raises:
            HookError: If the model has no such layer or hook point.
        """
        check_hook(layer, hook, self.n_layers)
        point = self.model.hook_dict.get(f"blocks.{layer}.hook_{hook}")
        if not isinstance(point, HookPoint):
            raise HookError(f"this model has no hook point 'blocks.{layer}.hook_{hook}'.")
        return point

    def watch(self, observer: Callable[[Call | None], None], changes: Changes[Any]) -> None:
        """See `Backend.watch`.

        The tokens are seen at the embedding and the mask and cache at block 0: `run_with_hooks` and
        `run_with_cache` call `model.forward` itself, so a hook on the root module would be passed over.
        """
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
