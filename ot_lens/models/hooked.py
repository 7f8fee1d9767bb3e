"""TransformerLens hook points on the residual stream of a Hugging Face causal language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ot_lens.models.architectures import branches, decoder_layers, residual_scale

HOOKS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")


@dataclass(frozen=True)
class HookedCausalLMConfig:
    """The fields of a TransformerLens configuration that a residual stream needs."""

    model_name: str
    n_layers: int
    d_model: int
    d_vocab: int
    n_ctx: int
    dtype: torch.dtype
    architecture: str


class _BlockHooks(nn.Module):
    """The hook points of one decoder layer, under TransformerLens's names."""

    def __init__(self) -> None:
        super().__init__()
        for hook in HOOKS:
            self.add_module(f"hook_{hook}", HookPoint())


class HookedCausalLM(HookedRootModule):
    """A Hugging Face causal language model with hook points on its residual stream alone.

    The decoder layers are Hugging Face's own, sdpa attention included, so logits equal its logits and an idle
    hook point costs nothing. `blocks.{i}.hook_resid_pre`, `hook_attn_out`, `hook_mlp_out` and
    `hook_resid_post` can be read and edited; `hook_resid_mid` is the input of the MLP's norm and can only be
    read: an edit there would not reach the skip connection.

    Attributes:
        hf_model: The wrapped model; its weights are never modified.
        tokenizer: Its tokenizer.
        system_prompt: System message of prompts that ot_lens renders; None leaves it to the template.
        thinking: True, False, "forced" or None, as in `load_model`.
        cfg: n_layers, d_model, d_vocab, n_ctx, dtype.
    """

    def __init__(self, hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        super().__init__()
        layers = decoder_layers(hf_model)
        config = hf_model.config.get_text_config()
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.system_prompt: str | None = None
        self.thinking: bool | str | None = None
        self.cfg = HookedCausalLMConfig(
            model_name=name,
            n_layers=len(layers),
            d_model=config.hidden_size,
            d_vocab=hf_model.get_output_embeddings().weight.shape[0],
            n_ctx=getattr(config, "max_position_embeddings", 0),
            dtype=hf_model.dtype,
            architecture=type(hf_model).__name__,
        )
        self.blocks = nn.ModuleList([_BlockHooks() for _ in layers])
        for layer, hooks in zip(layers, self.blocks, strict=True):
            _attach(layer, hooks)
        self.setup()

    def setup(self) -> None:
        """Name the hook points only: the wrapped modules keep their own attributes."""
        self.hook_dict = {n: m for n, m in self.named_modules() if isinstance(m, HookPoint)}
        self.mod_dict = dict(self.hook_dict)
        for name, point in self.hook_dict.items():
            point.name = name

    @property
    def device(self) -> torch.device:
        """Device of the embeddings, where tokens go."""
        return input_device(self.hf_model)

    def to_tokens(self, text: str | Sequence[str], prepend_bos: bool = False) -> Int[Tensor, "batch pos"]:
        """Tokenize rendered text, left padded, adding no special token unless `prepend_bos`."""
        texts = [text] if isinstance(text, str) else list(text)
        if prepend_bos:
            texts = [f"{self.tokenizer.bos_token}{t}" for t in texts]
        ids = self.tokenizer(
            texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
        )["input_ids"]
        return ids.to(self.device)

    def to_string(self, tokens: Int[Tensor, "*batch pos"]) -> str | list[str]:
        """Decode tokens, special tokens included."""
        if tokens.ndim == 1:
            return str(self.tokenizer.decode(tokens))
        return list(self.tokenizer.batch_decode(tokens))

    def forward(
        self,
        input: Int[Tensor, "batch pos"] | str | list[str],  # noqa: A002  TransformerLens's name
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of tokens, or of rendered text.

        Args:
            input: Tokens, or text already rendered by the chat template.
            attention_mask: 1 for real tokens. Derived from the pad token for text; all ones for tokens.
            kwargs: Passed to the Hugging Face model (position_ids, past_key_values, logits_to_keep ...).

        Returns:
            Logits in the model's dtype.
        """
        if not isinstance(input, Tensor):
            tokens = self.to_tokens(input)
            attention_mask = (tokens != self.tokenizer.pad_token_id).long()
        else:
            tokens = input
        if attention_mask is not None and "position_ids" not in kwargs and "past_key_values" not in kwargs:
            kwargs["position_ids"] = position_ids(attention_mask)
        return self.hf_model(input_ids=tokens, attention_mask=attention_mask, **kwargs).logits

    def generate(self, input: Int[Tensor, "batch pos"], **kwargs: Any) -> Int[Tensor, "batch longer"]:  # noqa: A002
        """Hugging Face's own `generate` on tokens; hooks fire in prefill and at every step."""
        with torch.no_grad():
            return self.hf_model.generate(input_ids=input, **kwargs)

    def run_with_cache(
        self, *args: Any, return_cache_object: bool = True, remove_batch_dim: bool = False, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Logits and an `ActivationCache` of the residual-stream hook points, as in TransformerLens."""
        out, cache = super().run_with_cache(*args, remove_batch_dim=remove_batch_dim, **kwargs)
        if return_cache_object:
            return out, ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)
        return out, cache


def input_device(hf_model: PreTrainedModel) -> torch.device:
    """Where a Hugging Face model takes its tokens."""
    embeddings = hf_model.get_input_embeddings()
    device: torch.device = embeddings.weight.device
    if device.type == "meta":  # offloaded: accelerate fetches the weights when they are needed
        return torch.device(embeddings._hf_hook.execution_device)
    return device


def position_ids(mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Positions that count real tokens only, so that left padding does not shift them."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _attach(layer: nn.Module, hooks: Any) -> None:
    # partial, not a closure: deepcopy of the model must carry its own hook points along.
    layer.register_forward_pre_hook(partial(_edit_input, hooks.hook_resid_pre), with_kwargs=True)
    layer.register_forward_hook(partial(_edit_output, hooks.hook_resid_post, 1.0))
    attention, mlp, before_mlp = branches(layer)
    scale = residual_scale(layer)
    attention.register_forward_hook(partial(_edit_output, hooks.hook_attn_out, scale))
    mlp.register_forward_hook(partial(_edit_output, hooks.hook_mlp_out, scale))
    if before_mlp is not None:
        before_mlp.register_forward_pre_hook(partial(_edit_input, hooks.hook_resid_mid), with_kwargs=True)


def _edit_input(
    point: HookPoint, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if _is_idle(point):
        return None
    if args:
        return (point(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": point(kwargs["hidden_states"])}


def _edit_output(point: HookPoint, scale: float, _module: nn.Module, _args: Any, output: Any) -> Any:
    """The hook point sees the output as it is added to the stream: times the layer's scale."""
    if _is_idle(point):
        return None
    hidden = output[0] if isinstance(output, tuple) else output
    edited = point(hidden) if scale == 1 else point(hidden * scale) / scale
    return (edited, *output[1:]) if isinstance(output, tuple) else edited


def _is_idle(point: HookPoint) -> bool:
    # torch.compile guards the length of a list but not the hooks of a module: without fwd_hooks here, a model
    # compiled before a hook was added would run without it.
    return not point.fwd_hooks and not point._forward_hooks
