"""Sizes of the weights that a study loads, known before anything is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ot_lens.behaviour import LazyJudge
from ot_lens.errors import ModelError
from ot_lens.models.sizes import ModelSize, model_size
from ot_lens.study.config import StudyConfig


def size_of(config: StudyConfig) -> ModelSize:
    """Size of the model that a configuration names."""
    return model_size(
        config.model,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        gguf_file=config.gguf_file,
    )


def judge_model(judge: str | Mapping[str, Any] | None) -> str | None:
    """Hub name or folder of a judge's model; None without a judge, or if a registered judge has its own."""
    return None if judge is None else LazyJudge(judge).model_name


def judge_size(judge: str | Mapping[str, Any] | None) -> tuple[float, int]:
    """Bytes and number of a judge's parameters; none if they are unknown."""
    name, loading = judge_model(judge), judge if isinstance(judge, Mapping) else {}
    if name is None:
        return 0.0, 0
    if Path(name).is_dir():
        stored = sum(path.stat().st_size for path in Path(name).glob("*.safetensors"))
        return float(stored), stored // 2
    size = model_size(name)
    return size.weight_bytes(quantization=loading.get("quantization")), size.n_parameters


def parameter_bytes(config: StudyConfig) -> int:
    """Bytes of the weights of model and judge; 0 where their configurations cannot be read."""
    try:
        weights = size_of(config).weight_bytes(config.dtype, config.quantization)
        return round(weights + judge_size(config.judge)[0])
    except ModelError:
        # Loading the model reports the fault, in the same words with every executor.
        return 0
