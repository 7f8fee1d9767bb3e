"""What capture, interventions and measures need of a model, whatever its kind."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformers import PreTrainedTokenizerBase

from ot_lens.errors import HookError, ModelError, one_of
from ot_lens.models.changes import Changes

HOOKS = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")

_PROMPT_WIDTH: ContextVar[int | None] = ContextVar("prompt_width", default=None)


@dataclass(frozen=True)
class Call:
    """One forward call as the model sees it.

    Attributes:
        tokens: The new tokens [batch, new], or None when the caller gave embeddings.
        mask: Attention mask [batch, past + new], or None when every token is real.
        past: Number of positions already in the KV cache.
        prompt_width: Columns of the sequence that belong to the prompt, when the caller announced it.
    """

    tokens: Int[Tensor, "batch new"] | None
    mask: Int[Tensor, "batch total"] | None
    past: int
    prompt_width: int | None


def prompt_width(width: int) -> Changes[None]:
    """Announce that the first `width` columns of the sequences run inside are the prompt."""
    return Changes(partial(_announce, width))


def _announce(width: int, changes: Changes[None]) -> None:
    changes.change(partial(_PROMPT_WIDTH.set, announced_width()), partial(_PROMPT_WIDTH.set, width))


@runtime_checkable
class Backend(Protocol):
    """What capture, interventions and measures need of a model."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    n_layers: int
    d_model: int
    d_vocab: int
    n_ctx: int
    edits_resid_mid: bool

    @property
    def device(self) -> torch.device:
        """Where tokens go."""
        ...

    def logits(
        self, tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], keep: int = 0
    ) -> Float[Tensor, "batch kept d_vocab"]:
        """Logits of the last `keep` positions (0: of all)."""
        ...

    def generate(
        self,
        tokens: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        max_new_tokens: int,
        eos: Sequence[int],
        use_cache: bool = True,
    ) -> Int[Tensor, "batch new"]:
        """Greedy continuation, new tokens only; after an end-of-sequence token the rest is padding."""
        ...

    def hook_point(self, layer: int, hook: str) -> HookPoint:
        """The hook point of a layer."""
        ...

    def watch(self, observer: Callable[[Call | None], None], changes: Changes[Any]) -> None:
        """Call `observer` before each forward, and with None after it, until `changes` are taken back."""
        ...


def check_hook(layer: int, hook: str, n_layers: int) -> None:
    """Check a hook point's name and layer.

    Raises:
        HookError: If either does not exist.
    """
    one_of("hook point", hook, HOOKS, HookError)
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_layers:
        raise HookError(f"layer {layer!r} does not exist: this model has layers 0-{n_layers - 1}.")


def announced_width() -> int | None:
    """The width that `prompt_width` announced, if any."""
    return _PROMPT_WIDTH.get()


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, or the end-of-sequence token where there is none (padding is masked either way)."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has neither a padding nor an end-of-sequence token: set tokenizer.pad_token."
        )
    return int(tokenizer.eos_token_id)
