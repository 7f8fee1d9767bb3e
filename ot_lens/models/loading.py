"""Loading a model: a hub name, a local folder, an embedded model, or one already in memory."""

from copy import copy
from importlib.resources import files
from os.path import isdir
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ot_lens.errors import ModelError, one_of
from ot_lens.io.untrusted import abbreviated
from ot_lens.models.backends import backend
from ot_lens.models.chat import set_chat, template_of
from ot_lens.models.hooked import HookedCausalLM
from ot_lens.models.pretrained import DeviceMap, load_hf, load_tokenizer
from ot_lens.models.stream import check_stream

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
    thinking: bool | str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a chat model with TransformerLens hook points.

    Args:
        model: A hub name; a folder in Hugging Face format; "organism" or "organism:single|multi|shared" (the
            embedded models; "multi" is the default); a Hugging Face model already loaded (give `tokenizer`
            too); or a TransformerBridge or HookedTransformer, which is checked and returned.
        tokenizer: Replaces the tokenizer of the folder.
        dtype: torch dtype or its name. Default: float32 for the embedded models, else the checkpoint's own.
        device: Default: "cuda" if available, else "cpu".
        device_map: Instead of one device: "auto" spreads the layers over all devices; or a dict from module
            to device, "cpu" or "disk", as accelerate takes it.
        hooks: "residual" puts hook points on the residual stream only, around Hugging Face's own layers
            (a `HookedCausalLM`); "full" boots a TransformerBridge with every hook point.
        revision: Branch, tag or commit of a hub model.
        quantization: "int8" or "nf4", the weights of linear layers in 8 or 4 bits, by bitsandbytes (the extra
            `ot-lens[quantization]`). Activations stay in `dtype`.
        system_prompt: System message of every prompt that ot_lens renders for this model, "" included.
            Default: what the chat template does (that of Qwen 2.5 writes one); a hooked model keeps the one
            it was given before.
        thinking: Whether prompts ask for a thought before the answer. False closes it, with the template's
            switch or, if the template always opens a thought, right behind it; True opens the switch;
            "forced" opens a thought in every prompt. Default: the switch is off, and a template without one
            is taken as it is, with a warning if it opens thoughts.
        trust_remote_code: Run code that comes with the model. Off by default.

    Returns:
        A `HookedCausalLM`, or the TransformerBridge / HookedTransformer.

    Raises:
        ModelError: If the model is unknown, unreachable, incomplete or of an unsupported kind, or the options
            contradict each other.
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
        if revision is not None and (name.startswith("organism") or isdir(name)):
            raise ModelError(f"revision = {revision!r}: {name} is a folder; only hub models have revisions.")
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        loaded = _load(name, tokenizer, hooks, loading, options)
    else:
        loaded = _already_loaded(model, tokenizer, loading)
    if system_prompt is not None:
        set_chat(loaded, system=system_prompt)
    if thinking is not None:
        set_chat(loaded, thinking=thinking)
        template_of(backend(loaded))
    return loaded


def model_name(model: Any) -> str:
    """The name under which a model was loaded, for manifests and tables."""
    return str(getattr(model.cfg, "model_name", type(model).__name__))


def _already_loaded(model: Any, tokenizer: PreTrainedTokenizerBase | None, loading: dict[str, Any]) -> Any:
    for name, value in loading.items():
        if value is not None:
            raise ModelError(
                f"{name} = {value!r} applies to models that are loaded by name; this {type(model).__name__} "
                "is already loaded."
            )
    if not isinstance(model, PreTrainedModel):
        backend(model)
        return model
    if tokenizer is None:
        raise ModelError("A Hugging Face model needs its tokenizer: load_model(model, tokenizer=...).")
    return _served(HookedCausalLM(model, tokenizer, model.config._name_or_path or type(model).__name__))


def _load(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    hooks: str,
    loading: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    place = locate(name)
    dtype = _dtype(loading["dtype"], default=torch.float32 if name.startswith("organism") else None)
    device, device_map = loading["device"], loading["device_map"]
    if device is not None and device_map is not None:
        raise ModelError(f"Give device = {str(device)!r} or device_map = {device_map!r}, not both.")
    place_on = _device(device) if device_map is None else device_map
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(name, place, options)
    # For hooks="full" too: its errors are clear, and it resolves dtype "auto".
    hf_model = load_hf(
        name, place, dtype=dtype, place_on=place_on, quantization=loading["quantization"], options=options
    )
    if hooks == "residual":
        return _served(HookedCausalLM(hf_model, tokenizer, name))
    from transformer_lens.model_bridge import TransformerBridge

    on = place_on if isinstance(place_on, torch.device) else None
    # Told so, transformer-lens takes this tokenizer as it is; otherwise it loads another.
    own = copy(tokenizer)
    own.init_kwargs = {**tokenizer.init_kwargs, "name_or_path": name, "add_bos_token": True}
    try:
        bridge = TransformerBridge.boot_transformers(
            place, hf_model=hf_model, tokenizer=own, dtype=hf_model.dtype, device=on
        )
    except Exception as error:
        raise ModelError(
            f"TransformerLens cannot load {name!r} with every hook point ({abbreviated(error)}): use "
            "hooks='residual'."
        ) from error
    return _served(bridge)


def _served(model: Any) -> Any:
    check_stream(backend(model))
    return model


def locate(name: str) -> str:
    """Where the files of a model are: a folder, or a hub name as given."""
    if name == "organism" or name.startswith("organism:"):
        variant = name.partition(":")[2] or "multi"
        if variant not in VARIANTS:
            raise ModelError(f"No embedded model {name!r}: choose organism:{', organism:'.join(VARIANTS)}.")
        return str(files("ot_lens") / "organism" / "weights" / variant)
    if isdir(name):
        if not (Path(name) / "config.json").is_file():
            raise ModelError(f"The folder {name} has no config.json: it is not a Hugging Face model folder.")
    elif Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise ModelError(f"No model folder {name!r}: check the path.")
    return name


def _dtype(dtype: torch.dtype | str | None, default: torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return default
    resolved = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ModelError(f"dtype must be float32, bfloat16, float16 or float64, got {dtype!r}.")
    return resolved


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device must be cpu, cuda or cuda:NUMBER, got {device!r}.") from error
    count = torch.cuda.device_count()
    if resolved.type == "cuda" and (resolved.index or 0) >= count:
        raise ModelError(f"The device {str(device)!r} does not exist: torch sees {count} CUDA devices.")
    return resolved
