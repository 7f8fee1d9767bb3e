"""Tiny random-weight checkpoints of real architectures, in the format of the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

from ot_lens.models import TokenBatch, backend, encode, token_batch
from ot_lens.prompts import Contrast, ContrastSet, Prompt

WORDS = [f"w{i}" for i in range(40)]
# Templates in the style of the families: Llama's headers, Qwen's ChatML.
TEMPLATES = {
    "llama": "{{ bos_token }}{% for m in messages %} <{{ m['role'] }}> {{ m['content'] }} <eot>{% endfor %}"
    "{% if add_generation_prompt %} <assistant> <nl>{% endif %}",
    "qwen2": "{% for m in messages %} <im> {{ m['role'] }} <nl> {{ m['content'] }} <eot> <nl>{% endfor %}"
    "{% if add_generation_prompt %} <im> <assistant> <nl>{% endif %}",
}
SPECIAL = [
    "<pad>", "<s>", "</s>", "<unk>", "<eot>", "<nl>", "<im>", "<turn>", "<user>", "<assistant>", "user",
    "[INST]", "[/INST]", "I", "As",
]  # fmt: skip


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the family's kind of chat template.

    A word tokenizer that adds a BOS by default; for Qwen its byte-level class, the only one that transformers
    loads for that architecture.
    """
    if family == "qwen2":
        letters = [*SPECIAL, *ByteLevel.alphabet()]
        vocabulary = {letter: i for i, letter in enumerate(dict.fromkeys(letters))}
        qwen = Qwen2Tokenizer(
            vocab=vocabulary, merges=[], unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
        )
        qwen.add_special_tokens({"additional_special_tokens": ["<im>", "<eot>", "<assistant>"]})
        qwen.chat_template = TEMPLATES[family]
        return qwen
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = TEMPLATES[family]
    return fast


def model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model of the family, with weights so large that its logits are far from uniform."""
    shape = {
        "vocab_size": 320 if family == "qwen2" else len(SPECIAL) + len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "qwen2":
        return random_weights(Qwen2ForCausalLM, Qwen2Config(**shape), seed)
    return random_weights(LlamaForCausalLM, LlamaConfig(**shape, tie_word_embeddings=True), seed)


def chain(tokens: Sequence[str], made: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Save a model that writes, after each of these tokens, the next; its stream is the last token's own."""
    n = 2 * len(made)
    shape = {"hidden_size": n, "intermediate_size": 4, "num_hidden_layers": 2, "num_attention_heads": 1}
    ends = {"bos_token_id": None, "eos_token_id": made.eos_token_id, "pad_token_id": made.pad_token_id}
    network = LlamaForCausalLM(LlamaConfig(vocab_size=len(made), **shape, **ends))
    ids = made.convert_tokens_to_ids(list(tokens))
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        for layer in (*network.model.layers, network.model):
            for name, norm in layer.named_children():
                if "norm" in name:
                    norm.weight.fill_(1.0)
        network.model.embed_tokens.weight.copy_(torch.eye(len(made), n))
        network.lm_head.weight[ids[1:], ids[:-1]] = 1.0
    network.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def random_weights(architecture: Any, config: Any, seed: int) -> PreTrainedModel:
    """A model of an architecture with random weights, including those of its norms."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = architecture(config)
        for name, weight in made.named_parameters():
            if "norm" in name:  # constant by default, so that a missing norm would not show
                torch.nn.init.uniform_(weight, 0.5, 1.5)
    return made.eval()


def write(folder: Path, family: str, seed: int = 0) -> Path:
    """Save model and tokenizer in Hugging Face folder format."""
    model(family, seed).save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return folder


def one_batch(model: Any, prompts: Sequence[str | Prompt]) -> TokenBatch:
    """All prompts in one batch, whatever the padding."""
    served = backend(model)
    return token_batch(served, encode(served, prompts))


def contrast(n: int = 6, seed: int = 0) -> Contrast:
    """Prompts of mixed lengths; the harmful ones begin with a word of the first half of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)

    def text(low: int) -> str:
        length = int(torch.randint(1, 9, (), generator=generator))
        first = int(torch.randint(low, low + 20, (), generator=generator))
        rest = torch.randint(0, 40, (length,), generator=generator).tolist()
        return " ".join(WORDS[i] for i in [first, *rest])

    return Contrast(
        tuple(Prompt(text(0), answer="w1 w2", answers=("w1 w2",)) for _ in range(n)),
        tuple(Prompt(text(20), answer="w3 w4 w5", answers=("w3 w4 w5",)) for _ in range(n)),
    )


def contrast_set(n: int = 6) -> ContrastSet:
    """Three such splits."""
    return ContrastSet("tiny", contrast(n, 0), contrast(n, 1), contrast(n, 2), "MIT", "generated")
