"""Sizes of the weights that a study loads, known before anything is loaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ot_lens.behaviour import YesNoJudge
from ot_lens.errors import ModelError
from ot_lens.models.sizes import ModelSize, model_size
from ot_lens.study.config import StudyConfig


def size_of(config: StudyConfig) -> ModelSize:
    """Size of the model that a configuration names."""
    return model_size(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)


def judge_model(judge: str | Mapping[str, Any]) -> str:
    """Hub name or folder of a judge's model."""
    settings = {"preset": judge} if isinstance(judge, str) else judge
    for kind in ("classifier", "yes_no", "model"):
        if kind in settings:
            return str(settings[kind])
    return YesNoJudge.preset_model(str(settings["preset"]))


def judge_size(judge: str | Mapping[str, Any] | None) -> tuple[float, int]:
    """Bytes and number of a judge's parameters; none without a judge."""
    if judge is None:
        return 0.0, 0
    name, loading = judge_model(judge), judge if isinstance(judge, Mapping) else {}
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
