"""Hugging Face checkpoints: read quietly, with one clear line for each way in which that fails."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available
from transformers.utils import logging as transformers_logging

from ot_lens.errors import ModelError, one_of
from ot_lens.io.untrusted import MIB, abbreviated, check_size, quoted

QUANTIZATIONS = ("int8", "nf4")
DeviceMap = str | dict[str, Any]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
# Sizes by the names that they have in configurations of decoders.
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_local_experts", "num_experts")
WIDTHS = (
    "hidden_size", "intermediate_size", "n_embd", "d_model", "d_ff", "n_inner", "head_dim", "ffn_dim",
    "num_attention_heads", "num_key_value_heads", "n_head", "moe_intermediate_size",
)  # fmt: skip
MOST_LAYERS, WIDEST = 4_096, 2**20
TEXTS, MOST_TEXT = (".json", ".jinja", ".txt", ".model"), 256 * MIB
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
    """A causal language model in evaluation mode, on a device or spread over several.

    Args:
        name: What the user called it, for messages.
        place: Hub name or folder.
        dtype: Default: the checkpoint's own.
        place_on: A device, or a device map.
        quantization: "int8", "nf4" or None.
        options: revision, trust_remote_code.

    Raises:
        ModelError: If it cannot be loaded whole.
    """
    check_folder(name, place)
    spread = place_on if not isinstance(place_on, torch.device) else None
    try:
        with _quiet():
            check_sizes(name, AutoConfig.from_pretrained(place, **options).to_dict())
            if quantization is not None:
                options = {**options, "quantization_config": _quantized(quantization, dtype)}
                spread = {"": place_on} if isinstance(place_on, torch.device) else place_on
            model, found = AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype or "auto", device_map=spread, output_loading_info=True, **options
            )
    except ModelError:
        raise
    except Exception as error:
        raise _unreachable(name, error, options.get("revision")) from error
    # transformers would make such weights up at random and only log it.
    if found["missing_keys"]:
        lost = sorted(found["missing_keys"])
        raise ModelError(
            f"cannot load {name!r}: the checkpoint lacks {len(lost)} weights of a {type(model).__name__}, "
            f"among them {lost[0]!r}. Give the folder of the whole model."
        )
    if isinstance(place_on, torch.device) and quantization is None:
        model = model.to(place_on)
    return model.eval()


def load_tokenizer(name: str, place: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name or folder.

    Raises:
        ModelError: If there is none.
    """
    folder = Path(place)
    if folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ModelError(
            f"the folder {name} holds no tokenizer: add its files (tokenizer.json, tokenizer_config.json), "
            "or hand one in as tokenizer=..."
        )
    check_folder(name, place)
    try:
        with _quiet():
            words = AutoTokenizer.from_pretrained(place, **options)
    except Exception as error:
        raise _unreachable(name, error, options.get("revision")) from error
    if not isinstance(words.model_max_length, int | float):
        raise ModelError(
            f"cannot load {name!r}: its tokenizer_config.json says model_max_length = "
            f"{quoted(words.model_max_length)}, which is no number."
        )
    return words


def check_folder(name: str, place: str) -> None:
    """Refuse a model folder whose texts are no files, or larger than those of any model; weights are mapped.

    Raises:
        ModelError: If there is such a one.
    """
    for path in Path(place).iterdir() if Path(place).is_dir() else ():
        if path.suffix in TEXTS and not path.is_dir():
            try:
                check_size(path, MOST_TEXT, ModelError)
            except FileNotFoundError as error:
                raise ModelError(f"cannot load {name!r}: {path} leads nowhere.") from error


def check_sizes(name: str, config: Mapping[Any, Any]) -> None:
    """Refuse a configuration of a size that no model has, before anything is built by it.

    Raises:
        ModelError: If a number of layers or a width in it is beyond all bounds.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(name, value)
        layers, width = key in LAYERS, key in WIDTHS
        if isinstance(value, int) and ((layers and value > MOST_LAYERS) or (width and value > WIDEST)):
            raise ModelError(
                f"cannot load {name!r}: its config.json says {key} = {quoted(value)}, and at most "
                f"{MOST_LAYERS if layers else WIDEST} are taken for true."
            )


def _quantized(quantization: str, dtype: torch.dtype | None) -> BitsAndBytesConfig:
    one_of("quantization", quantization, QUANTIZATIONS, ModelError)
    if not is_bitsandbytes_available():
        raise ModelError(
            f"quantization = {quantization!r} needs bitsandbytes: pip install 'ot-lens[quantization]'."
        )
    if quantization == "int8":
        # It says at every call of every layer that the input is cast to float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype or torch.bfloat16
    )


def _unreachable(name: str, error: Exception, revision: str | None) -> ModelError:
    chain = list(_causes(error))

    def because(kind: type[Exception]) -> bool:
        return any(isinstance(cause, kind) for cause in chain)

    # A gated model's error is a kind of the absent one's, so it is asked for first.
    if because(hub.GatedRepoError):
        return ModelError(
            f"the model {name!r} is gated: accept its licence on its page of the hub and log in "
            "(`hf auth login`), or give a local folder."
        )
    if because(hub.RevisionNotFoundError):
        return ModelError(f"the model {name!r} has no revision {revision!r}: give a branch, tag or commit.")
    if because(hub.RepositoryNotFoundError):
        return ModelError(
            f"the hub has no model {name!r}, or you may not see it: check the name, log in "
            "(`hf auth login`), or give a local folder."
        )
    if because(hub.LocalEntryNotFoundError) or because(hub.OfflineModeIsEnabled):
        return ModelError(
            f"the model {name!r} is not in the local cache and the hub cannot be reached: connect, unset "
            "HF_HUB_OFFLINE, or give a local folder."
        )
    if because(SafetensorError):
        return ModelError(
            f"cannot load {name!r}: a weights file is damaged ({abbreviated(error)}). Fetch or copy it again."
        )
    return _unloadable(name, str(error).strip(), type(error).__name__)


def _unloadable(name: str, text: str, kind: str) -> ModelError:
    if "trust_remote_code" in text:
        return ModelError(
            f"the model {name!r} brings code of its own, which is not run unasked: if you trust it, say "
            "trust_remote_code=True, and on the command line --trust-remote-code."
        )
    reason = text.splitlines()[0][:300] if text else kind
    return ModelError(
        f"cannot load {name!r}: {reason} Give a folder in Hugging Face format, the name of a model "
        "the hub can be reached for, or 'organism'."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from or while handling."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


@contextmanager
def _quiet() -> Iterator[None]:
    """No loading bars and no remarks of libraries; their settings are put back afterwards."""
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
