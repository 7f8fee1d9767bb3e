"""The description of a model in manifests and stores: everything that changes what its activations mean."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from ot_lens.linalg import float64
from ot_lens.models.adapters import adapters_record
from ot_lens.models.backends import Backend, HookedTransformerBackend, backend
from ot_lens.models.chat import chat_record
from ot_lens.models.loading import model_name

RAW_WEIGHTS = "none: Hugging Face's own weights"
PROCESSED_BRIDGE = "TransformerBridge compatibility mode: norms folded or weights centred"
# Mean of a weight's rows, relative to their size: centring leaves rounding, untouched weights far more.
CENTRED = 1e-4
# Values of each weight that the fingerprint reads: few enough to take no time next to a forward pass.
FINGERPRINTED = 4096


def model_record(model: Any) -> dict[str, Any]:
    """The description of a model in a manifest or a store's key, as JSON; never the text of its prompt."""
    served = backend(model)
    config = getattr(served.hf_model, "config", None)
    device_map = getattr(served.hf_model, "hf_device_map", None)
    source = getattr(served.hf_model, "ot_lens_source", {})
    return {
        "name": model_name(model),
        "class": type(model).__name__,
        "architecture": str(getattr(model.cfg, "architecture", None) or model.cfg.original_architecture),
        "revision": getattr(config, "_commit_hash", None),
        "dtype": str(model.cfg.dtype),
        "quantization": _quantization(config),
        "gguf": source.get("gguf"),
        "adapter": source.get("adapter"),
        "adapters_in_layers": adapters_record(served.hf_model),
        "device_map": device_map and {name: str(device) for name, device in device_map.items()},
        "n_layers": served.n_layers,
        "d_model": served.d_model,
        **chat_record(served),
        "weight_processing": _weight_processing(served),
        "weights_sha256": weights_fingerprint(served.hf_model or served.model),
    }


def weights_fingerprint(model: torch.nn.Module) -> str | None:
    """SHA-256 of at most 4096 evenly spaced values of every weight; None if weights are outside memory."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if weight.is_meta:
            return None
        flat = weight.detach().reshape(-1)
        read = flat[:: max(1, -(-flat.numel() // FINGERPRINTED))].cpu().contiguous()
        digest.update(f"{name} {list(weight.shape)} {weight.dtype}\n".encode())
        digest.update(read.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _quantization(config: Any) -> str | None:
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return None
    settings = quantized if isinstance(quantized, dict) else quantized.to_dict()
    if settings.get("load_in_8bit"):
        return "int8"
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type", "4bit"))
    return str(settings.get("quant_method"))


def _weight_processing(served: Backend) -> dict[str, bool | None] | str:
    """How the weights were processed after loading, as far as they show it."""
    if not isinstance(served, HookedTransformerBackend):
        # The bridge does not record the options, and that weights were processed only privately.
        return PROCESSED_BRIDGE if getattr(served.model, "_weights_processed", False) else RAW_WEIGHTS
    model: Any = served.model
    writing = [block.attn.W_O for block in model.blocks]
    writing += [block.mlp.W_out for block in model.blocks if hasattr(block, "mlp")]
    return {
        "fold_ln": str(model.cfg.normalization_type).endswith("Pre"),
        "center_writing_weights": all(_is_centred(w) for w in writing),
        "center_unembed": _is_centred(model.unembed.W_U),
        "fold_value_biases": _value_biases_folded(model),
    }


def _is_centred(weight: Tensor) -> bool:
    """Whether the rows of a weight [..., d] have mean zero."""
    double = float64(weight.detach())
    return bool(double.mean(-1).abs().max() <= CENTRED * double.square().mean().sqrt())


def _value_biases_folded(model: Any) -> bool | None:
    """None if the model has no attention biases, so that there was nothing to fold."""
    values = torch.stack([block.attn.b_V.detach().abs().max() for block in model.blocks])
    outputs = torch.stack([block.attn.b_O.detach().abs().max() for block in model.blocks])
    if not bool(values.any()) and not bool(outputs.any()):
        return None
    return not bool(values.any())
