"""Harm apart from refusal: two directions, what editing each moves, and whether harm is still read."""

from dataclasses import replace

import numpy as np
import pandas as pd

from ot_lens.plots.description import LAYER, Axis, Description, Element, Line, Panel, described
from ot_lens.plots.rows import checked, counts, curve, null_of, some
from ot_lens.plots.style import CLASSES, NULL, Mark
from ot_lens.tables import select

DIRECTIONS = {
    "harm": Mark("harm direction", "#7B5AA6", "square", "solid"),
    "refusal": Mark("refusal direction", CLASSES["harmful"].color, "circle", "solid"),
}
COSINE = Mark("harm and refusal", "#2B2F36", "diamond", "solid")
RANDOM = replace(NULL, label="chance, or random directions")
SHARE = Axis("share of harmful", limits=(0.0, 1.0))
AUC = Axis("AUC", limits=(0.0, 1.0), step=0.25)
# The edit that the figure shows; the table has all.
ACTION = "ace"


def harm_and_refusal(harm: pd.DataFrame) -> Description:
    """Cosine and separability over layers, and what affine ablation of either direction leaves.

    Args:
        harm: The table of `ot_lens.harm_and_refusal`.
    """
    rows = some(checked(harm, "harm"), "value in the harm table")
    edited = select(rows, action=ACTION)
    shares = select(select(edited, part="behaviour"), prompts="harmful")
    probes = select(edited, part="survival")
    last = select(probes, position="-1")
    cosines = select(rows, part="cosine")
    panels = [
        Panel("cosine of the directions", LAYER, Axis("cosine"), (*null_of(cosines, "cosine/null", RANDOM), Line("cosine", COSINE, curve(cosines)))),
        _panel("held-out separation", AUC, select(rows, part="separability")),
        _panel("refused after the edit", SHARE, select(shares, quantity="refused")),
        _panel("called harmful after the edit", SHARE, select(shares, quantity="named_harmful")),
        _panel("probe at the instruction", AUC, probes.drop(index=last.index)),
        _panel("probe at the last token", AUC, last),
    ]
    return described(panels, "harm", columns=3)


def _panel(title: str, y: Axis, rows: pd.DataFrame) -> Panel:
    elements: list[Element] = []
    for name, mark in DIRECTIONS.items():
        own = select(rows, direction=name)
        elements += [*(null_of(own, f"{title}/{name}/null", RANDOM) if not elements else ())]
        elements.append(Line(f"{title}/{name}", mark, curve(own)))
    return Panel(title, LAYER, y, tuple(elements))


def caption(harm: pd.DataFrame, **_: object) -> str:
    """What `harm_and_refusal` shows."""
    rows = select(harm, part="behaviour", prompts="harmful", method="none")
    shares = dict(zip(rows["quantity"], rows["value"], strict=True))
    before = "; ".join(
        f"{100 * float(shares[name]):.0f} % {words}"
        for name, words in (("refused", "refused"), ("named_harmful", "called harmful when asked"))
        if name in shares and np.isfinite(shares[name])
    )
    return (
        "The direction of harm (last token of the instruction, harmful against harmless prompts) and of refusal (last "
        "token of the prompt, what the model refuses against what it answers). Their cosine by layer, and how well "
        "each tells held-out prompts apart; grey: labels permuted. Then affine ablation of either direction at one "
        "layer, by layer: the share of harmful prompts that are still refused, and still called harmful when the "
        f"model is asked ({before or 'neither measured'} without an edit; grey: random directions), and the AUC of "
        "probes of harm that were trained on the unedited model, at the last token of the instruction and at that of "
        f"the prompt (grey: classes permuted). Bars and tints: 95 % intervals. n = {counts(harm)} prompts."
    )
