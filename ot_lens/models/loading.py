"""The door to a model: a hub name, a local folder, an embedded model, or one already loaded."""

from importlib.resources import files
from os.path import isdir
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ot_lens.errors import ModelError, one_of
from ot_lens.models.backend import backend
from ot_lens.models.chat import set_system_prompt
from ot_lens.models.hooked import HookedCausalLM
from ot_lens.models.pretrained import DeviceMap, load_hf, load_tokenizer

VARIANTS = ("single", "multi", "shared")
HOOK_SETS = ("residual", "full")


def load_model(
    model: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    hooks: str = "residual",
    revision: str | None = None,
    quantization: str | None = None,
    system_prompt: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a chat model with TransformerLens hook points.

    Args:
        model: A hub name; a folder in Hugging Face format; "organism" or "organism:single|multi|shared" (the
            embedded models; "multi" is the default); a Hugging Face model already loaded (give `tokenizer`
            too); or a TransformerBridge or HookedTransformer, which is checked and handed back.
        tokenizer: Replaces the tokenizer of the folder.
        dtype: torch dtype or its name. Default: float32 for the embedded models, else the checkpoint's own.
        device: Default: "cuda" when there is one, else "cpu".
        device_map: Instead of one device: "auto" spreads the layers over all there are, or a dict from
            module to device, "cpu" or "disk", as accelerate takes it.
        hooks: "residual" puts hook points on the residual stream alone, around Hugging Face's own layers
            (a `HookedCausalLM`); "full" boots a TransformerBridge with every hook point.
        revision: Branch, tag or commit of a hub model.
        quantization: "int8" or "nf4", the weights of linear layers in 8 or 4 bits, by bitsandbytes (the extra
            `ot-lens[quantization]`). Activations stay in `dtype`.
        system_prompt: System message of every prompt that ot_lens renders for this model, "" included.
            Default: what the chat template does by itself (Qwen-2.5's, say, brings one of its own); a model
            that is handed in hooked keeps the one it was given before.
        trust_remote_code: Run code that comes with the model. Off unless asked for.

    Returns:
        A `HookedCausalLM`, or the TransformerBridge / HookedTransformer.

    Raises:
        ModelError: If the model is unknown, unreachable, incomplete or of a kind that is not served, or the
            options do not go together.
    """
    one_of("set of hooks", hooks, HOOK_SETS, ModelError)
    loading = {
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "revision": revision,
        "quantization": quantization,
    }
    if isinstance(model, str | Path):
        name = str(model)
        options = {"revision": _revision(name, revision), "trust_remote_code": trust_remote_code}
        found = _load(name, tokenizer, hooks, loading, options)
    else:
        found = _already_loaded(model, tokenizer, loading)
    if system_prompt is not None:
        set_system_prompt(found, system_prompt)
    return found


def model_name(model: Any) -> str:
    """The name a model was loaded under, for manifests and tables."""
    return str(getattr(model.cfg, "model_name", type(model).__name__))


def _already_loaded(model: Any, tokenizer: PreTrainedTokenizerBase | None, loading: dict[str, Any]) -> Any:
    for name, value in loading.items():
        if value is not None:
            raise ModelError(
                f"{name} = {value!r} is for models that are loaded by name: this {type(model).__name__} is "
                "loaded already."
            )
    if not isinstance(model, PreTrainedModel):
        backend(model)
        return model
    if tokenizer is None:
        raise ModelError("a Hugging Face model needs its tokenizer: load_model(model, tokenizer=...).")
    return HookedCausalLM(model, tokenizer, model.config._name_or_path or type(model).__name__)


def _load(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    hooks: str,
    loading: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    place = _place(name)
    dtype = _dtype(loading["dtype"], default=torch.float32 if name.startswith("organism") else None)
    place_on = _place_on(loading["device"], loading["device_map"])
    words = tokenizer if tokenizer is not None else load_tokenizer(name, place, options)
    # With hooks="full" too: its errors are clear, and dtype "auto" is resolved there.
    hf_model = load_hf(
        name, place, dtype=dtype, place_on=place_on, quantization=loading["quantization"], options=options
    )
    if hooks == "full":
        return _bridge(place, hf_model, words, place_on)
    return HookedCausalLM(hf_model, words, name)


def _place(name: str) -> str:
    """Where the files of a model are: a folder, or a hub name as given."""
    if name == "organism" or name.startswith("organism:"):
        variant = name.partition(":")[2] or "multi"
        if variant not in VARIANTS:
            raise ModelError(f"no embedded model {name!r}: choose organism:{', organism:'.join(VARIANTS)}.")
        return str(files("ot_lens") / "organism" / "weights" / variant)
    if isdir(name):
        if not (Path(name) / "config.json").is_file():
            raise ModelError(
                f"the folder {name} holds no config.json: it is not a Hugging Face model folder."
            )
    elif Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ModelError(f"no model folder {name!r}: check the path.")
    return name


def _dtype(dtype: torch.dtype | str | None, default: torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return default
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelError(f"dtype = {dtype!r}: choose float32, bfloat16, float16 or float64.")
    return found


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device = {device!r}: choose cpu, cuda or cuda:NUMBER.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ModelError(f"device = {str(device)!r} is not there: torch sees {count} CUDA devices.")
    return found


def _revision(name: str, revision: str | None) -> str | None:
    if revision is not None and (name.startswith("organism") or isdir(name)):
        raise ModelError(f"revision = {revision!r}: {name} is a folder, only models of the hub have them.")
    return revision


def _place_on(device: str | torch.device | None, device_map: DeviceMap | None) -> torch.device | DeviceMap:
    if device_map is None:
        return _device(device)
    if device is not None:
        raise ModelError(f"device = {str(device)!r} and device_map = {device_map!r}: give one of the two.")
    return device_map


def _bridge(
    place: str,
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    place_on: torch.device | DeviceMap,
) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    device = place_on if isinstance(place_on, torch.device) else None
    return TransformerBridge.boot_transformers(
        place, hf_model=hf_model, tokenizer=tokenizer, dtype=hf_model.dtype, device=device
    )
