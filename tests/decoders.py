"""Tiny random checkpoints of every family of decoders, and what ot_lens makes of each."""

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

import ot_lens as otl
from ot_lens.components import Component, Reading, read_contributions
from ot_lens.components.reading import KINDS
from ot_lens.errors import HookError, ModelError, SinglePassError
from ot_lens.models import backend, batching
from ot_lens.single_pass import next_token_sweep
from ot_lens.transport import AffineMap
from tests import checkpoints

WIDTH = 32
LEAVE = "the configuration's own"
SIZES = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "sliding_window": 6,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_d_ssm": 64,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "residual_multiplier": 0.3,
    "logits_scaling": 4.0,
    "attn_out_multiplier": 0.7,
    "ssm_out_multiplier": 0.4,
    "final_logit_softcapping": 30.0,
}

# Families that the common sizes suffice for, and what the others need beside them.
PLAIN = (
    "afmoe", "apertus", "arcee", "aria_text", "beam", "biogpt", "bitnet", "bloom", "cohere",
    "cohere2", "cohere2_moe", "cwm", "diffllama", "doge", "dots1", "ernie4_5", "ernie4_5_moe",
    "exaone4", "exaone_moe", "falcon_h1", "falcon_mamba", "flex_olmo", "flint", "gemma", "gemma2",
    "gemma3_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode",
    "gpt_neox", "gpt_neox_japanese", "gpt_oss", "granite", "granite_swa", "granitemoe", "granitemoe_swa",
    "granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3",
    "hyperclovax", "inkling2_text", "inkling_text", "internlm3", "iquestcoder", "jais2", "jetmoe", "kolibri1",
    "laguna", "lfm3", "llama", "llama4_text", "mamba", "mellum", "mimo_v2_flash", "minimax",
    "minimax_m2", "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral",
    "modernbert-decoder", "mpt",
    "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "persimmon", "phi",
    "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
    "recurrent_gemma", "rwkv", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "vaultgemma",
    "xglm", "zamba",
)  # fmt: skip
INDEXED = {
    "q_lora_rank": 16,
    "head_dim": LEAVE,
    "num_key_value_heads": 4,
    "index_head_dim": 16,
    "index_n_heads": 2,
}
KIMI = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "head_dim": LEAVE,
    "num_key_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
}
QWEN_4 = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {family: {} for family in PLAIN} | {
    "axk1": {"q_lora_rank": 16, "head_dim": LEAVE, "num_key_value_heads": 4},
    "axk2": {"q_lora_rank": 16, "head_dim": LEAVE, "num_key_value_heads": 4},
    "bailing_hybrid": {"num_nextn_predict_layers": 0, **KIMI},
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 8},
    "deepseek_v2": {"head_dim": LEAVE, "num_key_value_heads": 4},
    "deepseek_v3": {"head_dim": LEAVE, "num_key_value_heads": 4},
    "deepseek_v32": INDEXED,
    "deepseek_v4": {"q_lora_rank": 16},
    "dots3_note_text": {
        "q_lora_rank": 16,
        "head_dim": LEAVE,
        "num_key_value_heads": 4,
        "per_layer_config": {
            "02": {
                "kv_lora_rank": 16,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "qk_nope_head_dim": 248,
            }
        },
    },
    "falcon": {"head_dim": LEAVE, "num_kv_heads": 2},
    "gemma3n_text": {
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "global_head_dim": 8},
    "glm4_moe_lite": {"head_dim": LEAVE, "num_key_value_heads": 4},
    "glm_moe_dsa": INDEXED,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_hidden_layers": 2, "num_layers": 2},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "hy_v4": {"q_lora_rank": 16},
    "jamba": {"attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2, "mamba_dt_rank": 4},
    "kimi_linear": KIMI,
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "longcat_flash": {
        "q_lora_rank": 16,
        "head_dim": 8,
        "qk_head_dim": 16,
        "num_key_value_heads": 4,
        "num_layers": 2,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
    "minicpm3": {"head_dim": LEAVE, "num_key_value_heads": 4},
    "nemotron_h": {"n_groups": 1, "chunk_size": 8},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "audio_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 16,
        },
    },
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "qwen4_exp_text": QWEN_4,
    "youtu": {"head_dim": LEAVE, "num_key_value_heads": 4},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "hybrid_layer_ids": [1],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}

# Sizes of the towers of vision-language models that see, hear and so on; each has some of these.
SEEING = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "text_hidden_size": WIDTH,
    "image_size": 8,
    "patch_size": 4,
    "vision_output_dim": 16,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
    "base_channels": 32,
    "vocab_size": 16,
    "num_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "d_model": 16,
    "conf_num_layers": 1,
    "resampler_n_latents": 4,
    "resampler_depth": 1,
    "mlp_dim": 16,
    "output_channels": 16,
    "global_attn_indexes": [0],
}
PICTURES_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}
ROPE = {"rope_parameters": PICTURES_ROPE}
LATENT = {"q_lora_rank": 16, "head_dim": LEAVE, "num_key_value_heads": 4}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
    "partial_rotary_factor": 0.5,
}
# Vision-language models, whose text towers are served, and what these need beside the common sizes.
VISION: dict[str, dict[str, Any]] = {
    "aria": {},
    "aya_vision": {},
    "chameleon": {"vocabulary_map": {"<image>": 1}},
    "cohere2_vision": {},
    "deepseek_vl": {},
    "ernie4_5_vl_moe": {"moe_intermediate_size": [16, 16], **ROPE},
    "exaone4_5": {},
    "fuyu": {},
    "gemma3": {},
    "gemma4": {},
    "gemma4_unified": {},
    "glm46v": ROPE,
    "glm4v": ROPE,
    "glm4v_moe": {
        "rope_parameters": {**PICTURES_ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
    },
    "glm_ocr": ROPE,
    "got_ocr2": {},
    "granite_docling": {},
    "hunyuan_vl": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "xdrope_section": [1, 1, 1, 1]}
    },
    "hyperclovax_vision_v2": {},
    "idefics2": {},
    "idefics3": {},
    "internvl": {},
    "janus": {},
    "kimi_k25": LATENT,
    "kosmos-2.5": {},
    "lfm2_vl": {},
    "lfm3_vl": {},
    "lighton_ocr": {},
    "llama4": {},
    "llava": {},
    "llava_next": {},
    "llava_onevision": {},
    "minicpmv4_6": {},
    "minimax_m3_vl": {},
    "mistral3": {},
    "mistral4": {**LATENT, "qk_head_dim": LEAVE, "rope_parameters": YARN},
    "mistral_large4": {
        **LATENT,
        "head_dim": 8,
        "qk_head_dim": 16,
        "index_head_dim": 16,
        "index_n_heads": 2,
    },
    "mllama": {"cross_attention_layers": [1]},
    "ovis2": {},
    "paddleocr_vl": ROPE,
    "paligemma": {},
    "qianfan_ocr": {},
    "qwen2_5_vl": ROPE,
    "qwen2_vl": ROPE,
    "qwen3_5": ROPE,
    "qwen3_5_moe": ROPE,
    "qwen3_vl": ROPE,
    "qwen3_vl_moe": ROPE,
    "qwen4_exp": ROPE,
    "smolvlm": {},
    "step3p7": {},
    "video_llama_3": {},
    "vipllava": {},
}


def config(family: str) -> Any:
    """The configuration of a tiny model of a family."""
    known = AutoConfig.for_model(family)
    if family not in VISION:
        return AutoConfig.for_model(family, **_sizes(known, FAMILIES[family]))
    text = known.get_text_config()
    sizes = _sizes(text, {**FAMILIES.get(text.model_type, {}), **VISION[family]})
    if text is known:
        return AutoConfig.for_model(family, **sizes, **_towers(known))
    sizes["model_type"] = text.model_type
    return AutoConfig.for_model(family, text_config=sizes, **_towers(known))


def _towers(known: Any) -> dict[str, Any]:
    """Small sizes of what a model has beside its text tower."""
    towers = {}
    for name in known.to_dict():
        tower = getattr(known, name, None)
        if name.endswith("_config") and name != "text_config" and isinstance(tower, PreTrainedConfig):
            sizes = {size: value for size, value in SEEING.items() if size in tower.to_dict()}
            towers[name] = {"model_type": tower.model_type, **sizes}
    return towers


def _sizes(known: Any, needs: dict[str, Any]) -> dict[str, Any]:
    names = {*known.to_dict(), *known.attribute_map, "pad_token_id", "bos_token_id", "eos_token_id"}
    given = {**{name: value for name, value in SIZES.items() if name in names}, **needs}
    return {name: value for name, value in given.items() if value != LEAVE}


def model(family: str) -> PreTrainedModel:
    """A model with random weights: norms, factors and biases too, so that leaving one out would show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = _kind(family).from_config(config(family))
        for name, weight in made.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(weight, 0.5, 1.5)
            elif not bool(weight.any()):
                torch.nn.init.normal_(weight, std=0.1)
        for name, value in made.named_buffers():
            if "scalar" in name:
                torch.nn.init.uniform_(value, 0.5, 1.5)
    return made.eval()


def _kind(family: str) -> Any:
    return AutoModelForImageTextToText if family in VISION else AutoModelForCausalLM


def load(family: str, folder: Path, hooks: str = "residual") -> Any:
    """A tiny model of a family, saved and loaded as users do."""
    if not (folder / "config.json").exists():
        model(family).save_pretrained(folder)
    return otl.load_model(folder, hooks=hooks, tokenizer=checkpoints.tokenizer("llama"))


PROMPTS = ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w10"]
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def examine(family: str, folder: Path, hooks: str = "residual") -> list[str]:
    """The cells of a family in the table, each checked; what is refused has a named error."""
    try:
        model = load(family, folder, hooks)
    except ModelError:
        return ["not served"]
    parts = captured(model, _kind(family).from_pretrained(folder).eval())
    answered(model)
    return [
        summed(parts), ablated(model, parts["resid_post"]), attributed(model), swept(model, "last"),
        swept(model, "all"),
    ]  # fmt: skip


def captured(model: Any, plain: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What each hook point gives; Hugging Face's logits and hidden states, whatever the padding."""
    prompts = checkpoints.contrast(2)
    read = {size: otl.capture(model, prompts, batch_size=size) for size in (1, 64)}
    torch.testing.assert_close(read[1].stacked("harmful"), read[64].stacked("harmful"), **CLOSE)
    for row, prompt in enumerate(prompts.harmful):
        batch = checkpoints.one_batch(model, [prompt])
        with torch.no_grad():
            expected = plain(batch.tokens, output_hidden_states=True)
            logits = backend(model).logits(batch.tokens, batch.mask)
        torch.testing.assert_close(logits, expected.logits, **CLOSE)
        states = expected.hidden_states
        first = len(states) > len(read[1].layers) and "Mamba" not in type(plain).__name__
        for layer in read[1].layers[1:]:  # Mamba's states begin with the first layer's output
            state = states[layer if first else layer - 1][0, -1]
            torch.testing.assert_close(read[1].harmful(layer)[row], state.double(), **CLOSE)
    parts = {"resid_pre": read[64].data["harmful"]}
    for hook in ("attn_out", "resid_mid", "mlp_out", "resid_post"):
        with suppress(HookError):
            parts[hook] = otl.capture(model, prompts, hook=hook).data["harmful"]
    return parts


def answered(model: Any) -> None:
    """The same answers alone, in a padded batch, and without a cache."""
    together = otl.complete(model, PROMPTS, max_new_tokens=4)
    assert together == [otl.complete(model, [prompt], max_new_tokens=4)[0] for prompt in PROMPTS]
    assert together == otl.complete(model, PROMPTS, max_new_tokens=4, use_cache=False)
    logits = [otl.next_token_logprobs(model, [prompt])[0] for prompt in PROMPTS]
    torch.testing.assert_close(otl.next_token_logprobs(model, PROMPTS), torch.stack(logits), **CLOSE)


def summed(parts: dict[str, torch.Tensor]) -> str:
    """The hook points inside a block, whose parts add up."""
    if "resid_mid" in parts and "attn_out" in parts:
        torch.testing.assert_close(parts["resid_pre"] + parts["attn_out"], parts["resid_mid"], **CLOSE)
    if "resid_mid" in parts and "mlp_out" in parts:
        torch.testing.assert_close(parts["resid_mid"] + parts["mlp_out"], parts["resid_post"], **CLOSE)
    if "resid_mid" not in parts and {"attn_out", "mlp_out"} <= set(parts):
        whole = parts["resid_pre"] + parts["attn_out"] + parts["mlp_out"]
        torch.testing.assert_close(whole, parts["resid_post"], **CLOSE)
    return ", ".join(hook for hook in parts if hook not in ("resid_pre", "resid_post")) or "none"


def ablated(model: Any, plain: torch.Tensor) -> str:
    """Ablation at every write leaves nothing of the direction anywhere."""
    direction = torch.nn.functional.normalize(
        torch.randn(WIDTH, 1, generator=torch.Generator().manual_seed(0)), dim=0
    )
    ablation = AffineMap(-direction, direction, torch.zeros(WIDTH))
    edits = otl.everywhere(ablation, range(backend(model).n_layers))
    try:
        edited = otl.capture(
            model, checkpoints.contrast(2), hook="resid_post", positions=[-1, -2], edits=edits
        )
    except HookError:
        return "no"
    assert (edited.data["harmful"] @ direction).abs().max() < 1e-4
    assert (plain @ direction).abs().max() > 1e-2
    return "yes"


def attributed(model: Any) -> str:
    """How far the projection of the stream is taken apart; the parts sum to it, and heads to attentions."""
    served = backend(model)
    direction = torch.nn.functional.normalize(torch.arange(1.0, WIDTH + 1).cos().double(), dim=0)
    for tokens in ("last", "all"):
        found = read_contributions(served, PROMPTS, Reading(direction, served.n_layers, True, tokens), 64)
        of = {kind: [component for component in found if component.kind == kind] for kind in KINDS}
        added(
            found,
            [c for kind in ("embedding", "attention", "mlp", "block") for c in of[kind]],
            of["stream"][0],
        )
        apart = {component.layer for component in of["head"]}
        for whole in of["attention"]:
            if whole.layer in apart:
                added(found, [c for c in (*of["head"], *of["bias"]) if c.layer == whole.layer], whole)
    if of["head"]:
        return "heads" if len(apart) == served.n_layers else "heads of some layers"
    return "blocks" if of["block"] else "attention, MLP"


def added(found: dict[Component, torch.Tensor], parts: list[Component], whole: Component) -> None:
    """Contributions sum to 1e-5 of what is summed."""
    terms = torch.stack([found[part] for part in parts])
    assert ((terms.sum(dim=0) - found[whole]).abs() <= 1e-5 * terms.abs().sum(dim=0)).all()


def swept(model: Any, tokens: str) -> str:
    """The single pass gives the logits of hooks, or a reason."""
    generator = torch.Generator().manual_seed(0)
    maps = [
        AffineMap(*(torch.randn(WIDTH, 2, generator=generator) / 4 for _ in range(2)), torch.ones(WIDTH))
        for _ in range(3)
    ]
    last = backend(model).n_layers - 1
    candidates = [{0: maps[0]}, {last: maps[1]}, {0: maps[2], last: maps[0]}, {(0, "resid_post"): maps[1]}]
    try:
        found = next_token_sweep(
            model, PROMPTS, candidates, lambda rows, _: rows.log_softmax(-1), tokens=tokens
        )
    except SinglePassError:
        return "plain hooks"
    for edits, row in zip(candidates, found, strict=True):
        with otl.intervene(model, edits, tokens):
            torch.testing.assert_close(row, otl.next_token_logprobs(model, PROMPTS), **CLOSE)
    return "single pass"


ABOUT = """# Models

Every family of decoders below is built as a tiny random checkpoint of transformers, saved, loaded and
examined: activations are the model's hidden states whatever the padding, answers are the same alone, in a
batch and without a cache, the parts of the residual stream add up, and the two engines of `localize` agree.
This page is generated by `python -m tests.decoders > docs/models.md`; a test fails when a row is out of
date.

- *Inside a block*: hook points other than `resid_pre` and `resid_post`. They sit on what is added to the
  stream, and `resid_mid` on the stream between the two additions. Others raise a `HookError`.
- *Every write*: whether a direction can be ablated from every write to the stream (`everywhere`).
- *Contributions*: how far `contributions` takes the projection of the stream apart: into heads, into
  attention and MLP outputs, or into blocks. The parts sum to the whole within 1e-5.
- *Next token*: how `localize` measures the next token at the token scopes `last` and `all`: in a single
  pass, or with plain hooks, which give the same numbers more slowly.
- *All hook points*: the same for `load_model(..., hooks="full")`, a TransformerBridge: "same", what
  differs, or "no". It was examined without torchvision, which TransformerLens needs for the Qwen families
  that see.

Other models work if their layers hand on one residual stream. A short sequence, run when a model is loaded,
shows whether they do, whether tokens see later ones and whether positions are counted from 0 (if not, the
model is refused), whether the parts of the stream add up, and whether padding changes the logits; in that
case only prompts of the same length share a batch. Encoders and encoder-decoders are refused.

A sliding window is what the model's own mask makes of it: the cache of an answer drops no token. Where
positions depend on the longest row of a batch (the `longrope` of Phi 3), the context ends before they do.

"""
HEAD = (
    "Family", "Class", "Inside a block", "Every write", "Contributions", "Next token, `last`",
    "Next token, `all`", "All hook points",
)  # fmt: skip


def cells(family: str, folder: Path) -> list[str]:
    """A row of the table but for its last cell."""
    examined = examine(family, folder)
    [architecture] = json.loads((folder / "config.json").read_text("utf-8"))["architectures"]
    return [family, architecture, *examined, *[""] * (5 - len(examined))]


def cell_of_every_hook_point(family: str, folder: Path, row: list[str]) -> str:
    """The last cell of a row."""
    if row[2] == "not served":
        return "no"
    found = examine(family, folder, "full")
    if len(found) == 1:
        return "no"
    entries = zip(HEAD[2:], found, row[2:], strict=False)
    return "; ".join(f"{name}: {mine}" for name, mine, theirs in entries if mine != theirs) or "same"


def documented(page: Path) -> dict[str, list[str]]:
    """The rows of the page by family."""
    lines = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[1:]]
    return {row[0]: row for row in rows}


if __name__ == "__main__":
    batching.MOST_PADDING = 1.1  # batches as mixed as their size allows
    print(ABOUT, end="")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for name in [*FAMILIES, *VISION]:
        with TemporaryDirectory() as scratch:
            begun = cells(name, Path(scratch))
            print(
                f"| {' | '.join([*begun, cell_of_every_hook_point(name, Path(scratch), begun)])} |",
                flush=True,
            )
