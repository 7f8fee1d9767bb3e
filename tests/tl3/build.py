"""A HookedTransformer from a Llama folder on disk, which transformer-lens 3.9 itself cannot load."""

from pathlib import Path

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


def hooked_transformer(folder: Path) -> HookedTransformer:
    """The HookedTransformer of a Llama folder: raw weights, no folding or centring.

    Its tokenizer is set directly: `set_tokenizer` would use one that adds a BOS, which rendered chat
    templates already contain.
    """
    hf = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cfg = _config(hf.config)
    model = HookedTransformer(cfg)
    weights = {name: weight.detach().clone() for name, weight in convert_llama_weights(hf, cfg).items()}
    left = model.load_state_dict(weights, strict=False)
    # Attention masks and rotary tables are buffers that the model has made itself.
    buffers = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
    assert [name for name in left.missing_keys if not name.endswith(buffers)] == []
    assert left.unexpected_keys == []
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
