"""Models whose computation is Hugging Face's: HookedCausalLM and TransformerBridge."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from ot_lens.errors import HookError
from ot_lens.models.changes import Changes
from ot_lens.models.hooked import HookedCausalLM, input_device, position_ids
from ot_lens.models.protocol import Call, announced_width, check_hook, pad_id

_ADDED_NORMS = {"attn_out": "ln1_post", "mlp_out": "ln2_post"}


class HFBackend:
    """A model whose computation is Hugging Face's: HookedCausalLM or TransformerBridge."""

    edits_resid_mid = False

    def __init__(self, model: Any, hf_model: Any) -> None:
        self.model = model
        self.hf_model = hf_model
        self.tokenizer = model.tokenizer
        self.n_layers = int(model.cfg.n_layers)
        self.d_model = int(model.cfg.d_model)
        self.d_vocab = int(model.cfg.d_vocab)
        self.n_ctx = int(model.cfg.n_ctx or 0)

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings."""
        return input_device(self.hf_model)

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], keep: int = 0
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """See `Backend.logits`."""
        output = self.hf_model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=position_ids(mask),
            use_cache=False,
            logits_to_keep=keep,
        )
        return output.logits

    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        max_new_tokens: int,
        eos: Sequence[int],
        use_cache: bool = True,
    ) -> Int[Tensor, "batch new"]:
        """See `Backend.generate`; Hugging Face's generate, with its sampling settings set aside."""
        sequences = self.hf_model.generate(
            input_ids=tokens,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=list(eos),
            pad_token_id=pad_id(self.tokenizer),
            use_cache=use_cache,
        )
        return sequences[:, tokens.shape[1] :]

    def hook_point(self, layer: int, hook: str) -> HookPoint:
        """See `Backend.hook_point`.

        Raises:
            HookError: If the model has no such layer or hook point.
        """
        check_hook(layer, hook, self.n_layers)
        name = f"blocks.{layer}.hook_{hook}"
        points = self.model.hook_dict
        if not isinstance(self.model, HookedCausalLM) and hook in _ADDED_NORMS:
            # Where a branch is normalized before it is added (Gemma 2 and 3) the addend is the norm's output.
            addend = f"blocks.{layer}.{_ADDED_NORMS[hook]}.hook_out"
            name = addend if addend in points else name
        point = points.get(name)
        if not isinstance(point, HookPoint):
            raise HookError(f"this model has no hook point {name!r}.")
        return point

    def watch(self, observer: Callable[[Call | None], None], changes: Changes[Any]) -> None:
        """See `Backend.watch`."""

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tokens = kwargs.get("input_ids", args[0] if args else None)
            cache = kwargs.get("past_key_values")
            past = int(cache.get_seq_length()) if cache is not None else 0
            observer(Call(tokens, kwargs.get("attention_mask"), past, announced_width()))

        changes.before(self.hf_model, before, with_kwargs=True)
        changes.after(self.hf_model, lambda *_: observer(None))
