"""The backend that serves a hooked model, and the state it is run in."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ot_lens.errors import ModelError
from ot_lens.models.changes import Changes
from ot_lens.models.hooked import HookedCausalLM
from ot_lens.models.hooked_transformer import HookedTransformerBackend
from ot_lens.models.hugging_face import HFBackend
from ot_lens.models.protocol import Backend


def backend(model: Any) -> Backend:
    """The backend that serves a hooked model; the model itself is left as it is.

    Raises:
        ModelError: If the model is of no kind that is served, or lacks a tokenizer.
    """
    if isinstance(model, HookedCausalLM):
        return HFBackend(model, model.hf_model)
    from transformer_lens.model_bridge import TransformerBridge

    if isinstance(model, TransformerBridge):
        if model.tokenizer is None:
            raise ModelError("this TransformerBridge has no tokenizer: boot it with tokenizer=...")
        return HFBackend(model, model.original_model)
    if _is_hooked_transformer(model):
        return HookedTransformerBackend(model)
    if hasattr(model, "_orig_mod"):
        raise ModelError(
            "this is the wrapper that torch.compile returns: hand in the model that was compiled; compiled "
            "calls of it are edited too."
        )
    raise ModelError(
        f"{type(model).__name__} is not a hooked model: hand in what ot_lens.load_model returns, "
        "a TransformerBridge or a HookedTransformer."
    )


def _is_hooked_transformer(model: Any) -> bool:
    try:
        from transformer_lens import HookedTransformer
    except ImportError:
        return False
    return isinstance(model, HookedTransformer)


def evaluating(model: nn.Module) -> Changes[None]:
    """No gradients and no dropout; every module's training flag is put back afterwards.

    no_grad rather than inference_mode: tensors that a model caches (rotary tables) stay usable in training.
    """
    return Changes(partial(_evaluate, model))


def _evaluate(model: nn.Module, changes: Changes[None]) -> None:
    gradients = torch.is_grad_enabled()
    changes.change(partial(torch.set_grad_enabled, gradients), partial(torch.set_grad_enabled, False))
    training = [module for module in model.modules() if module.training]
    changes.change(partial(_set_training, training, True), partial(_set_training, training, False))


def _set_training(modules: Sequence[nn.Module], training: bool) -> None:
    for module in modules:
        module.training = training
