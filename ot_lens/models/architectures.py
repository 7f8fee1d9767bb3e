"""Everything that depends on a model family; adding a family means changing this file alone."""

from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ot_lens.errors import ModelError, PromptError
from ot_lens.models.caches import CACHE, KEYS_AND_VALUES

# Attributes of a decoder that may hold its layers, and its final norm.
LAYERS = ("layers", "h", "blocks")
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "embedding_norm")


@dataclass(frozen=True)
class Branches:
    """Attributes of a decoder layer: the modules whose outputs join the residual stream, added together.

    "a|b" is the first of them that a layer has. `before_mlp` takes the stream between attention and MLP;
    layers whose branches are parallel have none.
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    before_mlp: str


# Attention, or what a layer of a hybrid has in its place.
MIXER = "self_attn|linear_attn|mamba|conv|attention|self_attention|attn|temporal_block|mixer"
MLP = "mlp|feed_forward|block_sparse_moe|moe|mlp_block|fc2"
BEFORE_MLP = (
    "pre_feedforward_layernorm|feedforward_layernorm|pre_ff_layernorm|pre_mlp_layernorm|ffn_norm|"
    "post_attention_layernorm|ln_2|norm_2|channel_pre_norm|final_layer_norm"
)
# The first entry whose modules all exist in a layer applies to it.
BRANCHES = (
    # Gemma 2-4, OLMo 2-3, EXAONE 4: a norm after each branch, before the MLP too in Gemma
    Branches(("post_attention_layernorm",), ("post_feedforward_layernorm",), "pre_feedforward_layernorm|mlp"),
    # GLM 4: as Gemma, under other names
    Branches(("post_self_attn_layernorm",), ("post_mlp_layernorm",), "post_attention_layernorm"),
    # AFMoE, HyperCLOVA X, LFM 3: likewise
    Branches(("post_attention_layernorm",), ("post_mlp_layernorm",), "pre_mlp_layernorm"),
    Branches(("post_norm1",), ("post_norm2",), "post_attention_layernorm"),
    Branches(("post_operator_norm",), ("post_ffn_norm",), "ffn_norm"),
    # Inkling: a short convolution after each branch
    Branches(("attn_sconv",), ("mlp_sconv",), "post_attention_layernorm"),
    # Falcon-H1: attention and a state space model side by side
    Branches(("mamba", "self_attn"), ("feed_forward",), "pre_ff_layernorm"),
    # Granite: experts, and an MLP that they share
    Branches((MIXER,), ("block_sparse_moe", "shared_mlp"), BEFORE_MLP),
    Branches((MIXER,), ("shared_mlp",), BEFORE_MLP),
    # Llama and most others
    Branches((MIXER,), (MLP,), BEFORE_MLP),
)
# The projection of an attention that the heads share, and the width of each head's part of its input.
OUTPUT_PROJECTION = "o_proj|out_proj|c_proj|dense"
HEAD_WIDTHS = ("v_head_dim", "head_dim", "head_size")
# Attention in name only: a recurrence in its place, or heads that the projection takes in pairs.
NOT_BY_HEAD = ("Delta", "Lightning", "DiffLlama")
# Factors of a branch, as attributes of the layer: Falcon-H1 scales its two apart, Granite every branch alike.
SCALES = {"mamba": "ssm_out_multiplier", "self_attn": "attn_out_multiplier"}
EVERY_SCALE = "residual_multiplier"
PARALLEL = "use_parallel_residual"
# A TransformerBridge's name for the module that it wraps.
WRAPPED = "original_component"
# Where a TransformerBridge normalizes a branch before adding it, the addend is that norm's output.
BRIDGE_ADDENDS = {"attn_out": "ln1_post", "mlp_out": "ln2_post"}

# Templates write a date into every prompt: Llama 3.1 by default this one; Llama 3.2, SmolLM 3, Granite,
# Mistral and gpt-oss today's. Activations captured on different days would belong to different prompts.
TEMPLATE_DATE = datetime(2024, 7, 26)
_DIRECTIVES = "aAbBcdDeFHIjmMpRSTUVwxXyYzZ"
# Variables of templates that switch thinking: Qwen 3, GLM 4.5, SmolLM 3; DeepSeek 3.1, Granite 3.3.
THINKING_SWITCHES = ("enable_thinking", "thinking")
# Where a thought begins and ends. A template that names one of a pair knows of thoughts.
THOUGHTS = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<mm:think>", "</mm:think>"),
    ("<ifm|think>", "</ifm|think>"),
    ("◁think▷", "◁/think▷"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)
# Words in place of marks (Granite 3.2): a pair only where a template or an answer has the first.
SPOKEN_THOUGHTS = (("Here is my thought process:", "Here is my response:"),)
# What may be around the answer behind a thought: Hunyuan, Granite and ERNIE, Command A.
ANSWERS = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<solution>", "</solution>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)
# gpt-oss begins every message with its channel.
CHANNEL = "<|channel|>{name}<|message|>"
THOUGHT_CHANNEL, ANSWER_CHANNEL = "analysis", "final"


def at_date(source: str, date: datetime = TEMPLATE_DATE) -> tuple[str, dict[str, Any]]:
    """A chat template whose clock stands still, and the variables that tell it the date.

    transformers gives templates a function of the clock and takes no other one: a macro of its name hides it.
    """
    variables = {"date_string": date.strftime("%d %b %Y")}
    if "strftime_now" not in source:
        return source, variables
    replaced = "".join(f" | replace('%{c}', '{date.strftime('%' + c)}')" for c in _DIRECTIVES)
    clock = (
        f"{{% macro strftime_now(format) %}}{{{{ format | replace('%-', '%'){replaced} }}}}{{% endmacro %}}"
    )
    return f"{clock}\n{source}", variables


# Tensor arguments of decoder layers that the single pass knows how to replay.
PER_POSITION = (
    "position_ids", "position_embeddings", "attention_mask", "cache_position", CACHE, KEYS_AND_VALUES,
)  # fmt: skip

# Families that transformers itself continues wrongly, by model type.
REFUSED = {"rwkv": "transformers mixes the rows of a batch when it continues several prompts at once"}

# Names of sizes in configurations.
CONFIG_COUNTS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_local_experts", "num_experts",
)  # fmt: skip
CONFIG_WIDTHS = (
    "hidden_size", "intermediate_size", "n_embd", "d_model", "d_ff", "n_inner", "head_dim", "ffn_dim",
    "num_attention_heads", "num_key_value_heads", "n_head", "moe_intermediate_size",
)  # fmt: skip


def _decoder(hf_model: Any) -> Any:
    """The module that holds the decoder layers."""
    found = hf_model.get_decoder()
    # Llama 4 finds its causal language model rather than the decoder inside, ModernBERT its output layer.
    places = (found, getattr(found, "model", None), hf_model.base_model)
    return next((place for place in places if any(hasattr(place, name) for name in LAYERS)), found)


def decoder_layers(hf_model: Any) -> nn.ModuleList:
    """The decoder layers of a Hugging Face causal language model."""
    decoder = _decoder(hf_model)
    for name in LAYERS:
        layers = getattr(decoder, name, None)
        if isinstance(layers, nn.ModuleList) and len(layers) > 0:
            return layers
    raise ModelError(
        f"{type(hf_model).__name__} has no known list of decoder layers: only decoder-only models are served."
    )


def branches(layer: Any) -> dict[str, list[tuple[nn.Module, float]]]:
    """The modules whose outputs, times a factor, join the stream at attn_out and mlp_out.

    And, for resid_mid, the module whose input is the stream between them. What is not known is left out.
    """
    for entry in BRANCHES:
        attention, mlp = (_modules(layer, names) for names in (entry.attention, entry.mlp))
        if attention and mlp:
            before = [] if getattr(layer, PARALLEL, False) else _modules(layer, (entry.before_mlp,))
            return {"attn_out": attention, "mlp_out": mlp} | ({"resid_mid": before} if before else {})
    mixer = _modules(layer, (MIXER,))
    return {"attn_out": mixer} if mixer else {}


def _modules(layer: Any, names: tuple[str, ...]) -> list[tuple[nn.Module, float]]:
    """The modules of these names with their factors; none unless all exist."""
    found: list[tuple[nn.Module, float]] = []
    for alternatives in names:
        present = (name for name in alternatives.split("|") if callable(getattr(layer, name, None)))
        name = next(present, None)
        if name is None:
            return []
        scale: float = getattr(layer, SCALES.get(name, ""), getattr(layer, EVERY_SCALE, 1.0))
        found.append((getattr(layer, name), float(scale)))
    return found


@dataclass(frozen=True)
class Heads:
    """Where the heads of a layer's attention meet: each has `width` columns of the projection's input.

    What the projection gives joins the stream times `scale`, or, where there is one, through a norm.
    """

    projection: nn.Module
    width: int
    scale: float
    norm: nn.Module | None

    @property
    def weights(self) -> nn.Module:
        """The projection by itself: that of a TransformerBridge has hook points, which must not see it."""
        return getattr(self.projection, WRAPPED, self.projection)


def heads_of(layer: Any) -> Heads | None:
    """The heads of a decoder layer; None where there are none, or none that are known to be apart."""
    added, mixers = branches(layer).get("attn_out", []), _modules(layer, (MIXER,))
    if len(added) != 1 or not mixers:
        return None
    (last, scale), (mixer, _) = added[0], mixers[0]
    # GPT-Neo has its attention inside another module.
    attention = getattr(mixer, "attention", mixer)
    kind = type(getattr(mixer, WRAPPED, mixer)).__name__
    width = next((int(w) for name in HEAD_WIDTHS if isinstance(w := getattr(attention, name, None), int)), 0)
    projections = (getattr(attention, name, None) for name in OUTPUT_PROJECTION.split("|"))
    projection = next((module for module in projections if callable(module)), None)
    by_head = "Attention" in kind and not any(word in kind for word in NOT_BY_HEAD)
    normalized = last is not mixer
    if not (by_head and width and projection) or (normalized and "Norm" not in type(last).__name__):
        return None
    return Heads(projection, width, scale, last if normalized else None)


def hook_name(names: Container[str], layer: int, hook: str) -> str:
    """The name of a hook point, among those that a model has."""
    addend = f"blocks.{layer}.{BRIDGE_ADDENDS.get(hook)}.hook_out"
    return addend if addend in names else f"blocks.{layer}.hook_{hook}"


def unembed(hf_model: Any, stream: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_vocab"]:
    """Logits of the residual stream that leaves the last layer."""
    decoder, config = _decoder(hf_model), hf_model.config.get_text_config()
    norm = next((getattr(decoder, name) for name in FINAL_NORMS if hasattr(decoder, name)), None)
    if norm is None:
        raise ModelError(f"{type(hf_model).__name__} has no known final norm.")
    logits: Tensor = hf_model.get_output_embeddings()(norm(stream))
    logits = logits * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def longrope_border(hf_model: Any) -> int | None:
    """Beyond how many tokens the longest row of a batch changes the positions of all (Phi 3's longrope)."""
    rope = getattr(hf_model.config.get_text_config(), "rope_parameters", None) or {}
    return int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else None


def terminators(hf_model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer, of the tokenizer and of the generation configuration (Llama 3)."""
    configured = getattr(getattr(hf_model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    ids = {int(i) for i in [*listed, tokenizer.eos_token_id] if i is not None}
    if not ids:
        raise PromptError("The tokenizer has no end-of-sequence token: set tokenizer.eos_token.")
    return tuple(sorted(ids))
