"""Hugging Face checkpoints: loaded quietly, with one clear message for each way of failing."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available
from transformers.utils import logging as transformers_logging

from ot_lens.errors import ModelError, UnusedWeightsWarning, one_of
from ot_lens.io.untrusted import MIB, abbreviated, check_size, quoted
from ot_lens.models.adapters import UNADAPTED
from ot_lens.models.architectures import CONFIG_COUNTS, CONFIG_WIDTHS
from ot_lens.models.settings import DeviceMap

try:
    from transformers import GgufConfig
except ImportError:  # older releases always unpack
    GgufConfig = None

QUANTIZATIONS = ("int8", "nf4")
SHOWN = 5  # names of weights in a warning
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
MOST_LAYERS, WIDEST = 4_096, 2**20
TEXTS, MOST_TEXT = (".json", ".jinja", ".txt", ".model"), 256 * MIB
# The error of a gated model is a subclass of that of an absent one, so it comes first.
_EXPLAINED: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    (
        (hub.GatedRepoError,),
        "The model {name!r} is gated: accept its licence on its hub page and log in (`hf auth login`), or "
        "give a local folder.",
    ),
    (
        (hub.RevisionNotFoundError,),
        "The model {name!r} has no revision {revision!r}: give a branch, tag or commit.",
    ),
    (
        (hub.RepositoryNotFoundError,),
        "The hub has no model {name!r}, or you may not see it: check the name, log in (`hf auth login`), or "
        "give a local folder.",
    ),
    (
        (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled),
        "The model {name!r} is not in the local cache and the hub cannot be reached: connect, unset "
        "HF_HUB_OFFLINE, or give a local folder.",
    ),
    (
        (SafetensorError,),
        "Cannot load {name!r}: a weights file is damaged ({error}). Fetch or copy it again.",
    ),
)
_NOISY = ("bitsandbytes", "accelerate", "transformers", "kernels")


def load_hf(
    name: str,
    place: str,
    *,
    dtype: torch.dtype | None,
    place_on: torch.device | DeviceMap,
    quantization: str | None,
    options: dict[str, Any],
) -> PreTrainedModel:
    """A causal language model in evaluation mode, on a device or spread over several."""
    check_folder(name, place)
    try:
        # transformers unpacks GGUF files with a progress bar of its own.
        with _quiet(), redirect_stderr(StringIO()) if "gguf_file" in options else nullcontext():
            config = AutoConfig.from_pretrained(place, **options)
            check_sizes(name, config.to_dict())
            model, report = auto_class(config).from_pretrained(
                place,
                dtype=dtype or "auto",
                output_loading_info=True,
                adapter_kwargs=UNADAPTED,
                **_placed(place_on, quantization, dtype, gguf="gguf_file" in options),
                **options,
            )
    except ModelError:
        raise
    except Exception as error:
        raise _unreachable(name, error, options.get("revision")) from error
    _check_weights(name, model, report)
    if "gguf_file" in options:
        _forget_packing(model)
    if isinstance(place_on, torch.device) and quantization is None:
        model = model.to(place_on)
    return model.eval()


def auto_class(config: PreTrainedConfig) -> Any:
    """The class that loads a configuration: a vision-language model whole, so that its weights have names."""
    vision = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    listed = config.architectures or []
    if vision is not None and (vision.__name__ in listed or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _placed(
    place_on: torch.device | DeviceMap, quantization: str | None, dtype: torch.dtype | None, *, gguf: bool
) -> dict[str, Any]:
    """Where the weights go and how they are packed, as arguments of `from_pretrained`."""
    spread = None if isinstance(place_on, torch.device) else place_on
    if quantization is not None:
        return {
            "quantization_config": _quantized(quantization, dtype),
            "device_map": spread or {"": place_on},
        }
    unpacked = {"quantization_config": GgufConfig(dequantize=True)} if gguf and GgufConfig else {}
    return {"device_map": spread, **unpacked}


def _forget_packing(model: PreTrainedModel) -> None:
    """A GGUF model is an ordinary one after its weights were unpacked, but still claims to be quantized."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _check_weights(name: str, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Every weight comes from the checkpoint; weights that the model does not take are named in a warning."""
    # transformers would initialize such weights at random and only log it.
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"Cannot load {name!r}: the checkpoint lacks {len(missing)} weights of a {type(model).__name__}, "
            f"among them {missing[0]!r}. Give the folder of the complete model."
        )
    unused = sorted(report["unexpected_keys"])
    if unused:
        warnings.warn(
            f"{name}: a {type(model).__name__} has no place for {len(unused)} weights of the checkpoint, "
            f"which are left out: {', '.join(unused[:SHOWN])}{' ...' if len(unused) > SHOWN else ''}. "
            "Check that this is the right kind of model for them.",
            UnusedWeightsWarning,
            stacklevel=4,
        )


def load_tokenizer(name: str, place: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or folder."""
    folder = Path(place)
    inside = (options["gguf_file"],) if "gguf_file" in options else TOKENIZER_FILES
    if folder.is_dir() and not any((folder / file).is_file() for file in inside):
        raise ModelError(
            f"The folder {name} holds no tokenizer: add its files (tokenizer.json, tokenizer_config.json), "
            "or pass tokenizer=..."
        )
    check_folder(name, place)
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:
        raise _unreachable(name, error, options.get("revision")) from error
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ModelError(
            f"Cannot load {name!r}: model_max_length in its tokenizer_config.json is not a number: "
            f"{quoted(tokenizer.model_max_length)}."
        )
    tokenizer.name_or_path = name  # not a folder of links
    return tokenizer


def check_folder(name: str, place: str) -> None:
    """Refuse a model folder whose text files are not regular files or too large; weights are mapped."""
    for path in Path(place).iterdir() if Path(place).is_dir() else ():
        if path.suffix in TEXTS and not path.is_dir():
            try:
                check_size(path, MOST_TEXT, ModelError)
            except FileNotFoundError as error:
                raise ModelError(f"Cannot load {name!r}: {path} is a broken link.") from error


def check_sizes(name: str, config: Mapping[Any, Any]) -> None:
    """Refuse a configuration with an absurd number of layers or width, before anything is built from it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(name, value)
        limit = MOST_LAYERS if key in CONFIG_COUNTS else WIDEST if key in CONFIG_WIDTHS else None
        if limit is not None and isinstance(value, int) and value > limit:
            raise ModelError(
                f"Cannot load {name!r}: config.json must have {key} <= {limit}, got {quoted(value)}."
            )


def _quantized(quantization: str, dtype: torch.dtype | None) -> BitsAndBytesConfig:
    one_of("quantization", quantization, QUANTIZATIONS, ModelError)
    if not is_bitsandbytes_available():
        raise ModelError(
            f"quantization = {quantization!r} needs bitsandbytes: pip install 'ot-lens[quantization]'."
        )
    if quantization == "int8":
        # It logs at every call of every layer that the input is cast to float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype or torch.bfloat16
    )


def _unreachable(name: str, error: Exception, revision: str | None) -> ModelError:
    """What to do about an error of transformers or of the hub, in one line."""
    chain, text = list(_causes(error)), str(error).strip()
    for kinds, message in _EXPLAINED:
        if any(isinstance(cause, kinds) for cause in chain):
            return ModelError(message.format(name=name, revision=revision, error=abbreviated(error)))
    if "trust_remote_code" in text:
        return ModelError(
            f"The model {name!r} comes with its own code, which does not run by default: to trust it, pass "
            "trust_remote_code=True (on the command line --trust-remote-code)."
        )
    reason = text.splitlines()[0][:300] if text else type(error).__name__
    return ModelError(
        f"Cannot load {name!r}: {reason} Give a folder in Hugging Face format, the name of a model on the "
        "hub, 'smollm2' or 'organism'."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it was raised from or while handling."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars or log messages from libraries; their settings are restored afterwards."""
    bars = transformers_logging.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    try:
        transformers_logging.disable_progress_bar()
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
