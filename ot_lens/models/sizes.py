"""The size of a model without its weights: from its published configuration, or from its config.json."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from ot_lens.errors import ModelError, one_of
from ot_lens.io.untrusted import abbreviated
from ot_lens.models.files import locate
from ot_lens.models.gguf import gguf_path
from ot_lens.models.named import named_weights
from ot_lens.models.pretrained import auto_class, check_folder, check_sizes

BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Per weight of a linear layer: 8 bits and one scale per row; 4 bits and one doubly quantized scale per 64
# weights (Dettmers et al. 2023, arXiv 2305.14314).
QUANTIZED = {"int8": 1.0, "nf4": 0.5 + 0.127 / 8}


@dataclass(frozen=True)
class ModelSize:
    """What memory and time of a decoder depend on."""

    name: str
    n_layers: int
    d_model: int
    n_kv_heads: int
    d_head: int
    d_vocab: int
    n_parameters: int
    n_outside: int  # the linear layers of the blocks, and so never quantized
    dtype: str = "bfloat16"  # of the checkpoint

    def weight_bytes(self, dtype: str | None = None, quantization: str | None = None) -> float:
        """Bytes of the weights in a dtype, default the checkpoint's; the linear layers may be quantized."""
        one_of("dtype", dtype or self.dtype, tuple(BYTES))
        per_value = BYTES[dtype or self.dtype]
        if quantization is None:
            return self.n_parameters * per_value
        one_of("quantization", quantization, tuple(QUANTIZED))
        inside = self.n_parameters - self.n_outside
        return inside * QUANTIZED[quantization] + self.n_outside * per_value


@cache
def _published() -> dict[str, Any]:
    return dict(json.loads((files("ot_lens.models") / "sizes.json").read_text("utf-8")))


def published_models() -> list[str]:
    """Hub names of the models whose sizes are stored here: the six of arXiv 2603.04355."""
    return list(_published()["models"])


def published(name: str) -> dict[str, Any] | None:
    """Shape of a published model, or of a judge fine-tuned from one; None for any other."""
    data = _published()
    shape = data["models"].get(data["judges"].get(name, name))
    return None if shape is None else dict(shape)


def model_size(
    model: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
) -> ModelSize:
    """Size of a model, without loading its weights."""
    shape = published(model)
    if shape is not None:
        return _of_shape(model, shape)
    weights, _ = named_weights(model)
    gguf = gguf_path(weights, gguf_file, revision)
    if gguf is not None:
        return _of_config(model, str(gguf.parent), {"gguf_file": gguf.name})
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    return _of_config(model, locate(weights), options)


def _of_shape(name: str, shape: dict[str, Any]) -> ModelSize:
    """Parameters of a Llama or a Qwen2 with untied embeddings, term by term."""
    d, layers, vocab = shape["d_model"], shape["n_layers"], shape["d_vocab"]
    d_head = d // shape["n_heads"]
    d_kv = d_head * shape["n_kv_heads"]
    linear = 2 * d * d + 2 * d * d_kv + 3 * d * shape["d_mlp"]  # query, output; key, value; the gated MLP
    biases = d + 2 * d_kv if shape["type"] == "qwen2" else 0
    outside = 2 * vocab * d + layers * (2 * d + biases) + d  # embedding and unembedding; norms, biases
    total = layers * linear + outside
    return ModelSize(name, layers, d, shape["n_kv_heads"], d_head, vocab, total, outside)


def _of_config(name: str, source: str, options: dict[str, Any]) -> ModelSize:
    """Parameters counted on a model without storage (torch's meta device)."""
    import torch
    from transformers import AutoConfig, AutoModel

    if "gguf_file" not in options:
        check_folder(name, source)
    try:
        config = AutoConfig.from_pretrained(source, **options)
        check_sizes(name, config.to_dict())
        generates = any(
            kind.endswith(("ForCausalLM", "ForConditionalGeneration"))
            for kind in config.architectures or ("ForCausalLM",)
        )
        with torch.device("meta"):
            model = (auto_class(config) if generates else AutoModel).from_config(
                config, trust_remote_code=bool(options.get("trust_remote_code"))
            )
        text = config.get_text_config()
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"cannot read the configuration of {name!r}: {abbreviated(error)}") from error
    # The embedded models run in float32 however they are stored.
    stored = None if name.startswith("organism") else getattr(config, "dtype", None)
    linear = sum(
        m.weight.numel()
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )
    total = sum(p.numel() for p in model.parameters())
    return ModelSize(
        name,
        text.num_hidden_layers,
        text.hidden_size,
        getattr(text, "num_key_value_heads", None) or heads,
        head_dim,
        text.vocab_size,
        total,
        total - linear,
        str(stored or "float32").removeprefix("torch."),
    )
