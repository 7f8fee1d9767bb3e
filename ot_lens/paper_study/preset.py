"""The study of arXiv 2603.04355 as a configuration; what the paper leaves open is an option."""

import math
from typing import Any

from ot_lens.errors import ConfigError, one_of
from ot_lens.study.config import StudyConfig, parse_config
from ot_lens.study.weights import size_of

LAYER_RULES = ("validation", "every", "fixed")
LIFTS = ("full", "subspace")
RANKS = (1, 2)
DEPTH = (0.4, 0.6)
JUDGE = "harmbench"
# What the HarmBench evaluation generates (Mazeika et al. 2024, arXiv 2402.04249).
MAX_NEW_TOKENS = 512
BATCH_SIZE = 16


def paper_study(
    model: str, *, layer_rule: str = "validation", mean_shift: str = "full", **overrides: Any
) -> StudyConfig:
    """The study of arXiv 2603.04355 on one model.

    Stated in the paper: harmful training prompts from AdvBench, MaliciousInstruct and TDC2023, validation
    from HarmBench val, harmless ones from Alpaca, 128 and 32 per class; HarmBench test; the last token;
    PCA-OT of rank 1 and 2 at one and at two layers, at about 40-60 % depth; RFA and AcT as baselines; attack
    success rate and perplexity. Left open there, and therefore options here: the rule that picks the layers,
    the lift, the token scope (`tokens`), the text of the perplexity (`perplexity_text`; none by default) and
    the token budget of an answer (`max_new_tokens`; 512, as in HarmBench).

    Args:
        model: A hub name, one of the paper's six or any other, a folder, or an embedded model.
        layer_rule: "validation": the single layer and the pair of the band with the lowest mean refusal score
            on the harmful validation prompts, for each method; "every": each layer and each pair of the band;
            "fixed": the layer at half depth, and the first with the last layer of the band.
        mean_shift: Lift of PCA-OT: "full" moves the mean in all dimensions, "subspace" in the components.
        overrides: Any other field of `StudyConfig`, over the preset's. The preset's judge is HarmBench's
            classifier, and none for the embedded models, whose answers are checked exactly.

    Returns:
        A configuration for `run_study`.

    Raises:
        ConfigError: If an option or field is unknown or invalid.
        ModelError: If the model's configuration cannot be read.
    """
    one_of("layer rule", layer_rule, LAYER_RULES)
    one_of("lift", mean_shift, LIFTS)
    embedded = model.partition(":")[0] == "organism"
    source, asked = "paper study", {"model": model, **overrides}
    n_layers = size_of(parse_config(asked, source)).n_layers
    preset = {
        "prompts": "organism" if embedded else "paper",
        "methods": [
            "rfa",
            "linear_act",
            *({"name": "pca_ot", "k": k, "mean_shift": mean_shift} for k in RANKS),
        ],
        "judge": None if embedded else JUDGE,
        "sets": ["single"],
        "tokens": "all",
        "answers": "chosen",
        "controls": [],
        "sufficiency": False,
        "max_new_tokens": MAX_NEW_TOKENS,
        "batch_size": BATCH_SIZE,
        "plane_layer": _middle(n_layers),
        "paper_table": True,
        **_layers(n_layers, layer_rule),
    }
    return parse_config({**preset, **asked}, source)


def depth_band(n_layers: int) -> list[int]:
    """Layers between two shares of the depth, both ends rounded outward."""
    # A layer's input has passed as many blocks as its number says. Rounded, since 0.6 * 35 is not exactly 21.
    first, last = (round(share * n_layers, 9) for share in DEPTH)
    band = list(range(math.floor(first), min(n_layers - 1, math.ceil(last)) + 1))
    if len(band) < 2:
        raise ConfigError(
            f"A model of {n_layers} layers has no two of them at 40-60 % of its depth: use a deeper model."
        )
    return band


def _middle(n_layers: int) -> int:
    return round(sum(DEPTH) / 2 * n_layers)


def _layers(n_layers: int, rule: str) -> dict[str, Any]:
    band = depth_band(n_layers)
    if rule == "validation":
        return {"layers": band, "search_size": 2, "search_each_size": True}
    singles, pairs = [[i] for i in band], [[i, j] for i in band for j in band if i < j]
    fixed = [[_middle(n_layers)], [band[0], band[-1]]]
    return {"layers": band, "search_size": 0, "layer_sets": fixed if rule == "fixed" else singles + pairs}
