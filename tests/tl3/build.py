"""A HookedTransformer from a Llama folder on disk, which transformer-lens 3.9 itself cannot load."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

N_WORDS = 40
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} <{{ message['role'] }}> {{ message['content'] }} </s>"
    "{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)


def write_llama(folder: Path, seed: int = 0) -> None:
    """Write a random Llama chat model of two layers: grouped-query attention and a word tokenizer."""
    tokenizer = _word_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        initializer_range=0.3,  # far from linear, so that a wrong conversion shows
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for name, weight in model.named_parameters():
            if "norm" in name:  # ones by default, so that a missing norm would not show
                torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_llama(folder: Path) -> LlamaForCausalLM:
    """The Hugging Face model of a folder, in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def hooked_transformer(folder: Path) -> HookedTransformer:
    """The HookedTransformer of a Llama folder: raw weights, no folding or centring.

    Its tokenizer is set directly: `set_tokenizer` would use one that adds a BOS, which rendered chat
    templates already contain.
    """
    hf = load_llama(folder)
    cfg = _config(hf.config)
    model = HookedTransformer(cfg)
    weights = {name: weight.detach().clone() for name, weight in convert_llama_weights(hf, cfg).items()}
    left = model.load_state_dict(weights, strict=False)
    _check_complete(left.missing_keys, left.unexpected_keys)
    model.tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.eval()


def _config(hf: LlamaConfig) -> HookedTransformerConfig:
    d_head = hf.hidden_size // hf.num_attention_heads
    return HookedTransformerConfig(
        model_name="llama",
        original_architecture="LlamaForCausalLM",
        n_layers=hf.num_hidden_layers,
        d_model=hf.hidden_size,
        d_head=d_head,
        n_heads=hf.num_attention_heads,
        n_key_value_heads=hf.num_key_value_heads,
        d_mlp=hf.intermediate_size,
        d_vocab=hf.vocab_size,
        n_ctx=hf.max_position_embeddings,
        eps=hf.rms_norm_eps,
        act_fn="silu",
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=d_head,
        rotary_base=hf.rope_parameters["rope_theta"],
        device="cpu",
        dtype=torch.float32,
    )


def _check_complete(missing: list[str], unexpected: list[str]) -> None:
    # Attention masks and rotary tables are buffers that the model has made itself.
    buffers = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
    lost = [name for name in missing if not name.endswith(buffers)]
    if lost or unexpected:
        raise ValueError(f"incomplete conversion: missing {lost}, unexpected {unexpected}")


def _word_tokenizer() -> Any:
    specials = ["<s>", "</s>", "<unk>", "<pad>", "<user>", "<assistant>"]
    words = specials + [f"w{i}" for i in range(N_WORDS)]
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
    )
