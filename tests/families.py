"""Tiny models of the paper's families and related ones: architecture, shape and chat template of the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests import checkpoints

TEMPLATES = Path(__file__).parent / "chat_templates"
LLAMA_3 = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
QWEN = ["<|endoftext|>", "<|im_end|>", "<|im_start|>"]
GEMMA = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
SENTENCEPIECE = ["<s>", "</s>"]


@dataclass(frozen=True)
class Family:
    """A family; its template "takes", "prefixes" (to the user's turn) or "refuses" a system message."""

    architecture: type[PreTrainedModel]
    config: Any
    shape: dict[str, Any]  # apart from the sizes that all have
    special: list[str]  # the first is the BOS, the second ends an answer
    suffix: str  # of the template, after the instruction
    system: str = "takes"
    own_system: str | None = None  # text of the system turn that the template writes


def _rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }


_HEADERS = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
_CHATML = "<|im_end|>\n<|im_start|>assistant\n"
_TURNS = "<end_of_turn>\n<start_of_turn>model\n"
_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024"

FAMILIES = {
    "llama2": Family(  # 7B: as many key as query heads
        LlamaForCausalLM,
        LlamaConfig,
        {"num_attention_heads": 4, "num_key_value_heads": 4},
        SENTENCEPIECE,
        " [/INST]",
    ),
    "llama31": Family(  # 8B: 32 heads, 8 of keys
        LlamaForCausalLM,
        LlamaConfig,
        {"num_attention_heads": 8, "num_key_value_heads": 2, "rope_parameters": _rope(8.0)},
        LLAMA_3,
        _HEADERS,
        own_system=_DATES,
    ),
    "llama32": Family(  # 1B and 3B: tied embeddings
        LlamaForCausalLM,
        LlamaConfig,
        {
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rope_parameters": _rope(32.0),
            "tie_word_embeddings": True,
        },
        LLAMA_3,
        _HEADERS,
        own_system=_DATES,
    ),
    "qwen25": Family(  # 7B: 28 heads, 4 of keys, biases
        Qwen2ForCausalLM,
        Qwen2Config,
        {"hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1},
        QWEN,
        _CHATML,
        own_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
    "qwen3": Family(  # 4B: norms on queries and keys, heads wider than the model, tied embeddings
        Qwen3ForCausalLM,
        Qwen3Config,
        {
            "hidden_size": 40,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "tie_word_embeddings": True,
        },
        QWEN,
        _CHATML + "<think>\n\n</think>\n\n",
    ),
    "mistral": Family(  # 7B v0.1: sliding window
        MistralForCausalLM,
        MistralConfig,
        {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6},
        SENTENCEPIECE,
        " [/INST]",
        "refuses",
    ),
    "gemma2": Family(  # 9B: soft caps, every other layer local, four norms a layer
        Gemma2ForCausalLM,
        Gemma2Config,
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 6,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        GEMMA,
        _TURNS,
        "refuses",
    ),
    "gemma3": Family(  # 4B's text model: five local layers to a global one, each with its own rotary table
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 6,
        },
        GEMMA,
        _TURNS,
        "prefixes",
    ),
}


def tokenizer(name: str) -> Any:
    """A byte-level tokenizer with the family's special tokens and its chat template.

    It adds a BOS if the family's does; Qwen has its own class, the only one that transformers loads for it.
    """
    family = FAMILIES[name]
    first, end = family.special[:2]
    letters = ["<pad>", *family.special, *sorted(ByteLevel.alphabet())]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    if family.special is QWEN:
        made = Qwen2Tokenizer(
            vocab=vocabulary, merges=[], unk_token=first, pad_token="<pad>", eos_token=end, bos_token=None
        )
        made.add_special_tokens({"additional_special_tokens": family.special})
    else:
        letters_of = Tokenizer(BPE(vocabulary, []))
        letters_of.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
        letters_of.decoder = decoders.ByteLevel()
        letters_of.post_processor = TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, vocabulary[first])]
        )
        made = PreTrainedTokenizerFast(
            tokenizer_object=letters_of, bos_token=first, eos_token=end, pad_token="<pad>"
        )
        made.add_special_tokens({"additional_special_tokens": family.special[2:]})
    made.chat_template = (TEMPLATES / f"{name}.jinja").read_text("utf-8").removesuffix("\n")
    return made


def model(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model of the family, with weights so large that its logits are far from uniform."""
    family = FAMILIES[name]
    shape = {
        "vocab_size": len(tokenizer(name)),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **family.shape,
    }
    return checkpoints.random_weights(family.architecture, family.config(**shape), seed)


def write(folder: Path, name: str, seed: int = 0) -> Path:
    """Save model and tokenizer in Hugging Face folder format."""
    model(name, seed).save_pretrained(folder)
    tokenizer(name).save_pretrained(folder)
    return folder
