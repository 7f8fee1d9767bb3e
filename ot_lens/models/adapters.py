"""PEFT adapters (LoRA and its relatives): applied to a model, merged or not, and described."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ot_lens.errors import ModelError
from ot_lens.io.untrusted import MIB, abbreviated, parse_json, quoted, read_text
from ot_lens.models.files import held_file, linked
from ot_lens.models.hooked import input_device
from ot_lens.models.reversible import evaluating

ADAPTER_CONFIG = "adapter_config.json"
# A subfolder that no repository has: transformers looks for an adapter there and so applies none by itself.
# Its older releases look into the folder itself: they are shown one without the adapter.
UNADAPTED = {"subfolder": "ot_lens-applies-adapters-itself"}
# Kinds whose PeftModel chooses what the layers do.
OUTSIDE = ("XLORA", "POLY")
# Differences of logits that the rounding of merged weights explains, relative to the largest logit.
OF_LOGITS, OF_LOGITS_IN_HALF = {torch.float64: 1e-6, torch.float32: 1e-2}, 0.3
MERGED = (
    "merged: it changes weights that several modules share, such as tied embeddings; leave out merge_adapter."
)
INSIDE = "put into the layers: it acts outside them too; give an adapter of the layers, such as LoRA."


def check_unadapted(name: str, revision: str | None) -> None:
    """Refuse a folder or repository with an adapter about which the caller said nothing.

    transformers would apply it if peft is installed and ignore it otherwise.
    """
    found = held_file(name, ADAPTER_CONFIG, revision)
    if found is None:
        if held_file(name, "config.json", revision) is None:
            _check_subfolders(name)
        return
    if held_file(name, "config.json", revision) is not None:
        raise ModelError(
            f"{name} holds a complete model and an adapter: pass adapter={name!r} to apply the adapter, or "
            "adapter=False to leave it out."
        )
    content = parse_json(read_text(Path(found), MIB, ModelError), found, ModelError)
    base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
    raise ModelError(
        f"{name} is an adapter of {quoted(base)}, not a complete model: load its base with adapter={name!r}."
    )


def _check_subfolders(folder: str) -> None:
    """Refuse a folder whose subfolders are the adapters, as peft saves several of them."""
    inside = sorted(path.parent.name for path in Path(folder).glob(f"*/{ADAPTER_CONFIG}"))
    if inside:
        raise ModelError(
            f"The folder {folder} holds adapters in its subfolders ({', '.join(inside)}): load their base "
            f"with adapter={str(Path(folder) / inside[0])!r}, or put several into the model with peft, and "
            "pass that model with its tokenizer."
        )


def unadapted(place: str) -> AbstractContextManager[str]:
    """A model's folder as if it held no adapter; a hub name as it is."""
    if not (Path(place) / ADAPTER_CONFIG).is_file():
        return nullcontext(place)
    return linked(path for path in Path(place).iterdir() if not path.name.startswith("adapter_"))


def apply_adapter(model: PreTrainedModel, adapter: str, merge: bool, name: str) -> PreTrainedModel:
    """The model with the adapter in its layers, or with the adapter added to its weights in memory.

    Either gives the logits of the PeftModel on a short sequence, or is refused: adapters of weights that two
    modules share, as tied embeddings do, cannot be merged.

    Raises:
        ModelError: If peft is missing, or the adapter cannot be read, is of a kind that acts outside the
            layers, does not belong to the model, or cannot be merged.
    """
    if find_spec("peft") is None:
        raise ModelError(f"adapter = {adapter!r} needs peft: pip install 'ot-lens[peft]'.")
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    # A short sequence, whose logits show whether the adapter acts as in its PeftModel.
    if held_file(adapter, ADAPTER_CONFIG) is None:
        _check_subfolders(adapter)
    n_tokens = model.get_input_embeddings().num_embeddings
    tokens = torch.arange(3, 9, device=input_device(model)).remainder(n_tokens)[None]
    try:
        config = PeftConfig.from_pretrained(adapter)
        _check_kind(config, adapter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what peft calls in transformers is to be renamed
            wrapped: Any = PeftModel.from_pretrained(model, adapter, config=config)
        saved = set(load_peft_weights(adapter, device="cpu"))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"Cannot apply the adapter {adapter!r} to {name!r}: {abbreviated(error)} Check the adapter, and "
            "that it was trained on this model."
        ) from error
    applied = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    unmatched = sorted(key for key in applied ^ saved if "embed" not in key and "lm_head" not in key)
    if unmatched:
        raise ModelError(
            f"The adapter {adapter!r} does not fit {name!r}: {len(unmatched)} of its weights have no "
            f"counterpart, among them {unmatched[0]!r}. Give the model that it was trained on."
        )
    with evaluating(wrapped):
        expected = wrapped(input_ids=tokens, use_cache=False).logits
        alone = _merged(wrapped, adapter) if merge else wrapped.get_base_model()
        found = alone.eval()(input_ids=tokens, use_cache=False).logits
    if (found - expected).abs().max() > OF_LOGITS.get(found.dtype, OF_LOGITS_IN_HALF) * expected.abs().max():
        raise ModelError(
            f"The adapter {adapter!r} gives another model when it is {MERGED if merge else INSIDE}"
        )
    return alone


def _merged(wrapped: Any, adapter: str) -> PreTrainedModel:
    try:
        merged: PreTrainedModel = wrapped.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"The adapter {adapter!r} cannot be merged ({abbreviated(error)}): leave out merge_adapter."
        ) from error
    return merged


def without_wrapper(model: Any) -> Any:
    """The model inside a PeftModel or PeftMixedModel, with its adapters still in its layers.

    Any other object is returned unchanged.

    Raises:
        ModelError: If an adapter acts outside the layers, so that the model inside is not the whole model.
    """
    configs = getattr(model, "peft_config", None)
    tuner: Any = getattr(model, "base_model", None)
    if not isinstance(model, nn.Module) or configs is None or not type(model).__name__.startswith("Peft"):
        return model
    for adapter, config in configs.items():
        _check_kind(config, adapter)
    # Prompt learning has no tuner, and is refused above; a PeftMixedModel has no `get_base_model`.
    return tuner.model


def adapters_record(hf_model: Any) -> list[dict[str, Any]] | None:
    """Name, kind and source of every adapter in a model's layers, and whether it is active or merged."""
    configs = getattr(hf_model, "peft_config", None)
    if not configs:
        return None
    layers = [
        m for m in hf_model.modules() if hasattr(m, "merged_adapters") and hasattr(m, "active_adapters")
    ]
    enabled = {name for layer in layers if not layer.disable_adapters for name in layer.active_adapters}
    merged = {name for layer in layers for name in layer.merged_adapters}
    return [
        {
            "name": name,
            "type": getattr(config.peft_type, "value", str(config.peft_type)),
            "base": config.base_model_name_or_path,
            "active": name in enabled,
            "merged": name in merged,
        }
        for name, config in sorted(configs.items())
    ]


def _check_kind(config: Any, adapter: str) -> None:
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind in OUTSIDE or getattr(config, "alora_invocation_tokens", None):
        raise ModelError(
            f"The adapter {adapter!r} acts by the prompt or its task, not in the layers alone: give one "
            "of the layers, such as LoRA."
        )
    if config.is_prompt_learning:
        raise ModelError(
            f"The adapter {adapter!r} adds virtual tokens, which are not in the layers: give an adapter of "
            "the layers, such as LoRA."
        )
