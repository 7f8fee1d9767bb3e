"""The study of arXiv 2603.04355 as a configuration; what the paper leaves open is an option."""

from collections.abc import Mapping
from typing import Any

from ot_lens.errors import one_of
from ot_lens.models.sizes import published_models
from ot_lens.paper_study.depth import depth_band, depth_grid, middle
from ot_lens.study.config import StudyConfig, parse_config
from ot_lens.study.weights import size_of

LAYER_RULES = ("grid", "validation", "every", "fixed")
LIFTS = ("full", "subspace")
RANKS = (1, 2)
JUDGE = "harmbench"
# What the HarmBench evaluation generates (Mazeika et al. 2024, arXiv 2402.04249).
MAX_NEW_TOKENS = 512
BATCH_SIZE = 16
# Strengths of the curves of success against perplexity, and what the paper leaves open.
VARIANTS: dict[str, list[int | float | str]] = {
    "strength": [0.25, 0.5, 0.75],
    "lift": ["full", "subspace", "discard"],
    "tokens": ["all", "last"],
    "k": [1, 2, 4, 8, 16, 32, 64],
}
# Tasks that the paper reports, and items of each (or of each of the 57 parts of MMLU).
CAPABILITY, CAPABILITY_LIMIT = ("mmlu", "arc_challenge", "truthfulqa_mc1", "gsm8k"), 100


def paper_study(
    model: str, *, layer_rule: str = "grid", mean_shift: str = "full", **overrides: Any
) -> StudyConfig:
    """The study of arXiv 2603.04355 on one model.

    Stated in the paper: harmful training prompts from AdvBench, MaliciousInstruct and TDC2023, validation
    from HarmBench val, harmless ones from Alpaca, 128 and 32 per class; HarmBench test; the last token;
    PCA-OT of rank 1 and 2 at one and at two layers, at about 40-60 % depth; RFA and AcT as baselines; attack
    success rate and perplexity. The run tests its claims (`paper_claims`), for which layers over the whole
    depth and all of them together are edited too, and tasks are scored. Left open there, and therefore
    options here: the rule that picks the layers, the lift, the token scope (`tokens`), the text of the
    perplexity (`perplexity_text`; none by default) and the token budget of an answer (`max_new_tokens`; 512,
    as in HarmBench).

    Args:
        model: A hub name, one of the paper's six or any other, a folder, or an embedded model.
        layer_rule: "grid": every layer of a model of up to 32, else 20 evenly spaced ones and all at 40-60 %
            of the depth (the band), each with answers; all of them together, fitted apart and from the bottom
            up; and the pair with the lowest mean refusal score on the harmful validation prompts. Cheaper,
            but without the rest of the depth to compare with: "validation", the single layer and the pair of
            the band that are best in that way; "every", each layer and each pair of the band; "fixed", the
            layer at half depth, and the first with the last layer of the band.
        mean_shift: Lift of PCA-OT: "full" moves the mean in all dimensions, "subspace" in the components.
        overrides: Any other field of `StudyConfig`, over the preset's. The preset's judge is HarmBench's
            classifier, and none for the embedded models, whose answers are checked exactly; only the paper's
            six models are scored on tasks, which are downloaded.

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
        "outcomes": True,
        "variants": VARIANTS if asked.get("claims", True) else {},
        "claims": True,
        "paper_table": True,
        **_capability(model, asked),
        **({} if "layers" in asked else {"plane_layer": middle(n_layers)}),
        **_layers(n_layers, layer_rule),
    }
    return parse_config({**preset, **asked}, source)


def _capability(model: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The tasks of the paper's models, whose edits act on all tokens, as lm-eval needs it."""
    scored = asked.get("tokens", "all") == "all" and asked.get("claims", True)
    if model not in published_models() or not scored:
        return {}
    return {"capability": list(CAPABILITY), "capability_limit": CAPABILITY_LIMIT}


def _layers(n_layers: int, rule: str) -> dict[str, Any]:
    band = depth_band(n_layers)
    chosen = {"search_size": 2, "search_each_size": True}
    if rule == "grid":
        together = {"sets": ["single", "all"], "fitting": ["independent", "sequential"], "answers": "all"}
        return {"layers": depth_grid(n_layers), **together, **chosen}
    if rule == "validation":
        return {"layers": band, **chosen}
    singles, pairs = [[i] for i in band], [[i, j] for i in band for j in band if i < j]
    fixed = [[middle(n_layers)], [band[0], band[-1]]]
    return {"layers": band, "search_size": 0, "layer_sets": fixed if rule == "fixed" else singles + pairs}
