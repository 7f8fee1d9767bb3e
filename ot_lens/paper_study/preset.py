"""The study of arXiv 2603.04355 as a configuration; what the paper leaves open is an option."""

import math
from collections.abc import Mapping
from typing import Any

from ot_lens.errors import ConfigError, one_of
from ot_lens.paper_study.architecture import Architecture, architecture
from ot_lens.study.config import StudyConfig, parse_config

LAYER_RULES = ("validation", "every", "fixed")
LIFTS = ("full", "subspace")
RANKS = (1, 2)
DEPTH = (0.4, 0.6)
JUDGE = "harmbench"
# What the HarmBench evaluation generates (Mazeika et al. 2024, arXiv 2402.04249).
MAX_NEW_TOKENS = 512
BATCH_SIZE = 16


def paper_study(
    model: str,
    *,
    layer_rule: str = "validation",
    mean_shift: str = "full",
    tokens: str = "all",
    judge: str | Mapping[str, Any] | None = "default",
    **others: Any,
) -> StudyConfig:
    """The study of arXiv 2603.04355 on one model.

    Known of the paper: harmful training prompts from AdvBench, MaliciousInstruct and TDC2023, validation from
    HarmBench val, harmless ones from Alpaca, 128 and 32 a class; HarmBench test; the last token; PCA-OT of
    rank 1 and 2 at one and at two layers, at about 40-60 % depth; RFA and AcT as baselines; attack success
    rate and perplexity. Open, and so named here: the token scope, the lift, the rule that picks the layers,
    the text of the perplexity (`perplexity_text`; none by default) and the token budget of an answer (512, as
    in HarmBench).

    Args:
        model: A hub name, one of the paper's six or any other, a folder, or an embedded model.
        layer_rule: "validation": the single layer and the pair of the band with the lowest mean refusal score
            on the harmful validation prompts, for each method; "every": each layer and each pair of the band;
            "fixed": the layer at half depth, and the first with the last layer of the band.
        mean_shift: Lift of PCA-OT: "full" moves the mean in all dimensions, "subspace" in the components.
        tokens: Token scope of the edits: "all", "prompt", "last" or "generated".
        judge: A judge, as `LazyJudge` takes it, or None. Default: the HarmBench classifier; none for the
            embedded models, whose answers are checked exactly.
        others: Any further field of `StudyConfig`, over what is chosen here.

    Returns:
        A configuration for `run_study`.

    Raises:
        ConfigError: If an option is unknown.
        ModelError: If the model's configuration cannot be read.
    """
    one_of("layer rule", layer_rule, LAYER_RULES)
    one_of("lift", mean_shift, LIFTS)
    embedded = model.partition(":")[0] == "organism"
    shape = architecture(
        model,
        revision=others.get("revision"),
        trust_remote_code=bool(others.get("trust_remote_code")),
    )
    fields = {
        "model": model,
        "prompts": "organism" if embedded else "paper",
        "tokens": tokens,
        "methods": [
            "rfa",
            "linear_act",
            *({"name": "pca_ot", "k": k, "mean_shift": mean_shift} for k in RANKS),
        ],
        "judge": (None if embedded else JUDGE) if judge == "default" else judge,
        "sets": ["single"],
        "answers": "chosen",
        "controls": [],
        "sufficiency": False,
        "max_new_tokens": MAX_NEW_TOKENS,
        "batch_size": BATCH_SIZE,
        "plane_layer": round(sum(DEPTH) / 2 * shape.n_layers),
        "paper_table": True,
        **_layers(shape, layer_rule),
    }
    return parse_config({**fields, **others}, "paper study")


def depth_band(n_layers: int, depth: tuple[float, float] = DEPTH) -> list[int]:
    """Layers between two shares of the depth, both ends rounded outward.

    Raises:
        ConfigError: If the model has too few layers to hold two of them.
    """
    # A layer's input has passed as many blocks as its number says. Rounded: 0.6 * 35 is not 21 to the bit.
    first, last = (round(share * n_layers, 9) for share in depth)
    band = list(range(math.floor(first), min(n_layers - 1, math.ceil(last)) + 1))
    if len(band) < 2:
        raise ConfigError(f"a model of {n_layers} layers has no two of them at 40-60 % of its depth.")
    return band


def _layers(shape: Architecture, rule: str) -> dict[str, Any]:
    band = depth_band(shape.n_layers)
    if rule == "validation":
        return {"layers": band, "search_size": 2, "search_each_size": True}
    middle = round(sum(DEPTH) / 2 * shape.n_layers)
    pairs = [[i, j] for i in band for j in band if i < j]
    sets = [[middle], [band[0], band[-1]]] if rule == "fixed" else [*([i] for i in band), *pairs]
    return {"layers": band, "search_size": 0, "layer_sets": sets}
