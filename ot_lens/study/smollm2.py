"""The study of SmolLM2 with refusal planted in known layers, as a configuration."""

from typing import Any

from ot_lens.models.named import SMOLLM2
from ot_lens.study.config import StudyConfig, parse_config

LAYERS = tuple(range(2, 30, 3))
# Answers are generated under edits of these layers; at the others the next token alone is read.
ANSWERED = (5, 11, 17, 23, 29)
METHODS: tuple[str | dict[str, Any], ...] = (
    "rfa",
    "mean_shift",
    {"name": "pca_ot", "k": 1},
    {"name": "pca_ot", "k": 8},
    "gaussian_ot",
)


def smollm2_study(adapter: str = "early", **overrides: Any) -> StudyConfig:
    """The study of a real language model that learnt to decline everyday requests in known layers.

    SmolLM2-135M-Instruct with an adapter of the package: projection and transport at every third layer, with
    controls and, at five of them, answers; geometry; and which of the 30 blocks make refusal, with the base
    model at hand. Its sizes fit a quarter of an hour on two cores.

    Args:
        adapter: An adapter of the package: "early", "middle", "late", "spread" and others.
        overrides: Any other field of `StudyConfig`, over the preset's.

    Returns:
        A configuration for `run_study`.

    Raises:
        ConfigError: If a field is unknown or invalid.
    """
    preset: dict[str, Any] = {
        "model": f"{SMOLLM2}:{adapter}",
        "base": SMOLLM2,
        "prompts": SMOLLM2,
        "sample": [128, 8, 32],
        "layers": list(LAYERS),
        "methods": list(METHODS),
        "sets": ["single"],
        "answers": "chosen",
        "layer_sets": [[layer] for layer in ANSWERED],
        "search_size": 0,
        "sufficiency": False,
        "control_draws": 2,
        "measures": ["refusal_rate", "refusal_score", "kl"],
        "max_new_tokens": 16,
        "localizers": 16,
        "interchange": 6,
        "permutations": 100,
        "bootstrap": 100,
        "batch_size": 64,
    }
    return parse_config({**preset, **overrides}, "smollm2 study")
