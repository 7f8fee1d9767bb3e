"""TransformerLens hook points on the residual stream of a Hugging Face causal language model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ot_lens.errors import ModelError, PromptError
from ot_lens.models.architectures import branches, decoder_layers
from ot_lens.models.caches import NAMES

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
    """The hook points of one decoder layer, under TransformerLens's names, those inside as far as known."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        inside = branches(layer)
        self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()
        # partial, not a closure: deepcopy of the model must carry its own hook points along.
        layer.register_forward_pre_hook(partial(_edit_input, self.hook_resid_pre), with_kwargs=True)
        layer.register_forward_hook(partial(_edit_output, self.hook_resid_post, 1.0))
        for hook, modules in inside.items():
            point = HookPoint()
            self.add_module(f"hook_{hook}", point)
            (module, scale), *others = modules
            if hook == "resid_mid":
                module.register_forward_pre_hook(partial(_edit_input, point), with_kwargs=True)
            elif not others:
                module.register_forward_hook(partial(_edit_output, point, scale))
            else:
                ((last, last_scale),) = others
                both = _Sum(point)
                module.register_forward_hook(partial(_Sum.hold, both, scale))
                last.register_forward_hook(partial(_Sum.edit, both, last_scale))


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
        layers, head = decoder_layers(hf_model), hf_model.get_output_embeddings()
        if head is None:
            raise ModelError(
                f"A {type(hf_model).__name__} gives no logits of tokens: load it with AutoModelForCausalLM."
            )
        config = hf_model.config.get_text_config()
        self.hf_model = hf_model
        self.tokenizer = tokenizer
        self.system_prompt: str | None = None
        self.thinking: bool | str | None = None
        self.cfg = HookedCausalLMConfig(
            model_name=name,
            n_layers=len(layers),
            d_model=config.hidden_size,
            d_vocab=head.weight.shape[0],
            n_ctx=getattr(config, "max_position_embeddings", 0),
            dtype=hf_model.dtype,
            architecture=type(hf_model).__name__,
        )
        self.blocks = nn.ModuleList([_BlockHooks(layer) for layer in layers])
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
        return self._tokenized(text, prepend_bos)[0]

    def _tokenized(
        self, text: str | Sequence[str], prepend_bos: bool = False
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Tokens and mask; the mask is of the padding, whatever the padding token is otherwise used for."""
        texts = [text] if isinstance(text, str) else list(text)
        if prepend_bos:
            texts = [f"{self.tokenizer.bos_token}{t}" for t in texts]
        rows = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for i, row in enumerate(rows):
            check_tokens(row, self.cfg.d_vocab, f"Text {i}")
        tokens, mask = pad_left(rows, padding_token(self.tokenizer, self.cfg.d_vocab))
        return tokens.to(self.device), mask.to(self.device)

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
            attention_mask: 1 for real tokens. The padding's for text; all ones for tokens.
            kwargs: Passed to the Hugging Face model (position_ids, cache, logits_to_keep ...).

        Returns:
            Logits in the model's dtype.
        """
        if not isinstance(input, Tensor):
            tokens, attention_mask = self._tokenized(input)
        else:
            tokens = input
        if attention_mask is not None and not {"position_ids", *NAMES} & set(kwargs):
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


def padding_token(tokenizer: Any, d_vocab: int) -> int:
    """A token to pad with: under the mask any will do that the embedding has."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in known if token is not None and token < d_vocab), 0)


def check_tokens(row: Sequence[int], d_vocab: int, what: str) -> None:
    """Refuse tokens that the embedding does not have: on CUDA they would end the process."""
    if max(row, default=0) >= d_vocab:
        raise PromptError(
            f"{what} has the token {max(row)}, beyond the model's {d_vocab} embeddings: resize the "
            "embeddings, or use the tokenizer that belongs to the model."
        )


def pad_left(
    rows: Sequence[Sequence[int]], pad: int
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Left-pad rows of token ids; returns tokens and mask."""
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = 1
    return tokens, mask


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


def _edit_input(
    point: HookPoint, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if _is_idle(point):
        return None
    if args:
        return (point(args[0]), *args[1:]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: point(kwargs[name])}


def _edit_output(point: HookPoint, scale: float, _module: nn.Module, args: Any, output: Any) -> Any:
    """The hook point sees the output as it is added to the stream: times the layer's scale."""
    if _is_idle(point):
        return None
    hidden = _added(output, args, scale)
    edited = point(hidden)
    return None if edited is hidden else _in_place_of(output, edited / scale)


class _Sum:
    """Two modules whose outputs are added: the hook point sees the sum, and its edit enters by the second."""

    def __init__(self, point: HookPoint) -> None:
        self._point = point
        self._first: dict[int, Tensor] = {}  # by thread: a model may run in several

    def hold(self, scale: float, _module: nn.Module, args: Any, output: Any) -> None:
        if not _is_idle(self._point):
            self._first[get_ident()] = _added(output, args, scale)

    def edit(self, scale: float, _module: nn.Module, args: Any, output: Any) -> Any:
        first = self._first.pop(get_ident(), None)
        if first is None:
            return None
        both = first + _added(output, args, scale)
        edited = self._point(both)
        return None if edited is both else _in_place_of(output, (edited - first) / scale)


def _added(output: Any, args: tuple[Any, ...], scale: float) -> Tensor:
    """A module's output as it joins the stream."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    if args and isinstance(args[0], Tensor) and args[0].ndim > hidden.ndim:
        hidden = hidden.view(args[0].shape)  # the experts of Llama 4 return [batch * pos, d]
    return hidden if scale == 1 else hidden * scale


def _in_place_of(output: Any, edited: Tensor) -> Any:
    hidden = output[0] if isinstance(output, tuple) else output
    edited = edited.view(hidden.shape)
    return (edited, *output[1:]) if isinstance(output, tuple) else edited


def _is_idle(point: HookPoint) -> bool:
    # torch.compile guards the length of a list but not the hooks of a module: without fwd_hooks here, a model
    # compiled before a hook was added would run without it.
    return not point.fwd_hooks and not point._forward_hooks
