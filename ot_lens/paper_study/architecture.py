"""The size of a model without its weights: from its published configuration, or from its config.json."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ot_lens.errors import ModelError
from ot_lens.io.untrusted import abbreviated
from ot_lens.models.pretrained import check_folder, check_sizes


@dataclass(frozen=True)
class Architecture:
    """What memory and time of a decoder depend on.

    Attributes:
        name: The model.
        n_layers: Decoder layers.
        d_model: Width of the residual stream.
        n_kv_heads: Key-value heads of a layer.
        d_head: Width of a head.
        d_vocab: Tokens of the vocabulary.
        n_parameters: All parameters.
        n_outside: Parameters outside the linear layers of the blocks, which quantization leaves as they are.
        dtype: Of the checkpoint; 16 bits for all six models of the paper.
    """

    name: str
    n_layers: int
    d_model: int
    n_kv_heads: int
    d_head: int
    d_vocab: int
    n_parameters: int
    n_outside: int
    dtype: str = "bfloat16"


@cache
def _data() -> dict[str, Any]:
    text = (files("ot_lens") / "study" / "data" / "architectures.json").read_text("utf-8")
    return dict(json.loads(text))


def paper_models() -> list[str]:
    """The six models of arXiv 2603.04355, by their names on the hub."""
    return list(_data()["models"])


def published(name: str) -> dict[str, Any] | None:
    """Shape of one of the six models, or of a judge that has the shape of one; None for any other."""
    data = _data()
    shape = data["models"].get(data["judges"].get(name, name))
    return None if shape is None else dict(shape)


def architecture(model: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Architecture:
    """Size of a model, without loading its weights.

    Args:
        model: One of the six models of the paper or a judge's model, whose numbers are in the package; an
            embedded model; a folder; any other hub name, of which only config.json is read.
        revision: Revision of a hub model.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelError: If there is no such model, or its configuration cannot be read.
    """
    shape = published(model)
    if shape is not None:
        return _of_shape(model, shape)
    return _of_config(model, revision, trust_remote_code)


def _of_shape(name: str, shape: dict[str, Any]) -> Architecture:
    """Parameters of a Llama or a Qwen2 with untied embeddings, term by term."""
    d, layers, vocab = shape["d_model"], shape["n_layers"], shape["d_vocab"]
    d_head = d // shape["n_heads"]
    d_kv = d_head * shape["n_kv_heads"]
    linear = 2 * d * d + 2 * d * d_kv + 3 * d * shape["d_mlp"]  # query, output; key, value; the gated MLP
    biases = d + 2 * d_kv if shape["type"] == "qwen2" else 0
    outside = 2 * vocab * d + layers * (2 * d + biases) + d  # embedding and unembedding; norms, biases
    return Architecture(
        name, layers, d, shape["n_kv_heads"], d_head, vocab, layers * linear + outside, outside
    )


def _of_config(name: str, revision: str | None, trust_remote_code: bool) -> Architecture:
    """Parameters counted on a model without storage (torch's meta device)."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    place = _place(name)
    check_folder(name, place)
    try:
        config = AutoConfig.from_pretrained(place, revision=revision, **options)
        check_sizes(name, config.to_dict())
        causal = any(kind.endswith("ForCausalLM") for kind in config.architectures or ())
        with torch.device("meta"):
            model = (AutoModelForCausalLM if causal else AutoModel).from_config(config, **options)
        text = config.get_text_config()
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"cannot read the configuration of {name!r}: {abbreviated(error)}") from error
    linear = sum(
        m.weight.numel()
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )
    total = sum(p.numel() for p in model.parameters())
    return Architecture(
        name,
        text.num_hidden_layers,
        text.hidden_size,
        getattr(text, "num_key_value_heads", None) or heads,
        head_dim,
        text.vocab_size,
        total,
        total - linear,
        _dtype(name, config),
    )


def _place(name: str) -> str:
    """Folder of an embedded model; anything else as it stands."""
    head, _, variant = name.partition(":")
    if head != "organism":
        return name
    folder = Path(str(files("ot_lens") / "organism" / "weights" / (variant or "multi")))
    if not folder.is_dir():
        raise ModelError(
            f"no embedded model {name!r}: choose organism:single, organism:multi or organism:shared."
        )
    return str(folder)


def _dtype(name: str, config: Any) -> str:
    """Dtype the weights are loaded in; the embedded models are in float32 whatever they are stored in."""
    if name.startswith("organism"):
        return "float32"
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
