"""What the paper claims, one figure per claim: each comparison with its interval, the margin and the verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.plots.description import Axis, Curve, Description, Key, Panel, Points, Reference, described
from ot_lens.plots.rows import checked, counts, finite, some
from ot_lens.plots.style import Mark, method_mark
from ot_lens.tables import select

GREY = "#555555"
SUPPORTED, NOT_SUPPORTED, CANNOT_TELL = "supported", "not supported", "cannot tell"
LARGE, SMALL = 4.4, 2.2
KEYS = (
    Key(SUPPORTED, GREY, "circle", size=LARGE),
    Key(NOT_SUPPORTED, GREY, "circle", hollow=True, size=LARGE),
    Key(CANNOT_TELL, GREY, "circle", size=SMALL),
)
AGREEMENT = "agreement"
NOTHING, ENOUGH = Mark("", "#767B84", "pentagon", "dash"), Mark("", "#767B84", "pentagon", "dot")
STEPS = (0.02, 0.05, 0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Shown:
    """The claims of one figure, the columns whose values tell panels apart, and what each row is called."""

    title: str
    claims: tuple[str, ...]
    panels: tuple[str, ...]
    row: Callable[[pd.Series], str]
    about: str


def _against(row: pd.Series) -> str:
    """Both sides; of one method, its name once."""
    edit, reference = str(row["edit"]), str(row["reference"])
    label, _, rest = reference.partition(", ")
    return f"{edit} vs {rest if rest and edit.startswith(f'{label}, ') else reference}"


def _method(row: pd.Series) -> str:
    return method_mark(str(row["method"]), row["k"]).label


def _edit(row: pd.Series) -> str:
    return str(row["edit"])


SHOWN = {
    "claim_layers": Shown(
        "One or two layers against the full network", ("layers",), ("quantity",), _against,
        "The best single layer and the best pair of layers, chosen on validation prompts, minus all layers "
        "together, fitted apart or from the bottom up.",
    ),
    "claim_depth": Shown(
        "Where in the depth", ("depth", "collapse"), ("claim", "quantity"), _method,
        "Depth: the best layer at 40-60 % of the depth minus the best one outside, both chosen on validation "
        "prompts. Collapse: the mean over the layers at 40-60 % of the depth minus that beyond 80 %, of coherent "
        "success; the other way round, of empty and repetitive answers.",
    ),
    "claim_gain": Shown(
        "Gain at equal perplexity", ("gain",), ("quantity", "comparison"), _against,
        "PCA-OT at full strength minus the most that the other edit reaches, along its strengths, at no larger "
        "cost; and the mean of that over all strengths of PCA-OT. Harmful and harmless prompts resampled jointly.",
    ),
    "claim_sensitivity": Shown(
        "What the result depends on", ("sensitivity",), ("quantity",), _edit,
        "Each variant of an edit that was chosen on validation prompts minus that edit.",
    ),
    "claim_capability": Shown(
        "Capability under edits", ("capability",), ("comparison",), _edit,
        "Accuracy under the edit minus that of the unedited model, on the same items.",
    ),
    "claim_success": Shown(
        "What counts as success", ("success", AGREEMENT), ("claim",), _edit,
        "Attack success rate (share of harmful prompts not refused) minus the share answered coherently; and "
        "Cohen's kappa of the judge and the phrases, where a judge answered.",
    ),
}  # fmt: skip


def claim_layers(claims: pd.DataFrame) -> Description:
    """Whether one or two layers beat the full network.

    Args:
        claims: The table of `paper_claims`.
    """
    return _forest(claims, SHOWN["claim_layers"])


def claim_depth(claims: pd.DataFrame) -> Description:
    """Whether layers at 40-60 % of the depth beat the others, and those beyond 80 % collapse.

    Args:
        claims: The table of `paper_claims`.
    """
    return _forest(claims, SHOWN["claim_depth"])


def claim_gain(claims: pd.DataFrame) -> Description:
    """How much more PCA-OT reaches than the baselines at equal perplexity.

    Args:
        claims: The table of `paper_claims`.
    """
    return _forest(claims, SHOWN["claim_gain"])


def claim_sensitivity(claims: pd.DataFrame) -> Description:
    """What rank, lift and token scope change.

    Args:
        claims: The table of `paper_claims`.
    """
    return _forest(claims, SHOWN["claim_sensitivity"])


def claim_capability(claims: pd.DataFrame) -> Description:
    """What edits cost on tasks.

    Args:
        claims: The table of `paper_claims`.
    """
    return _forest(claims, SHOWN["claim_capability"])


def claim_success(claims: pd.DataFrame) -> Description:
    """How much the attack success rate overstates success, and how well judge and phrases agree.

    Args:
        claims: The table of `paper_claims`.
    """
    return _forest(claims, SHOWN["claim_success"])


def _forest(claims: pd.DataFrame, shown: Shown) -> Description:
    rows = _rows(claims, shown)
    named = rows.assign(row=[shown.row(row) for _, row in rows.iterrows()])
    names = list(dict.fromkeys(named["row"]))
    ticks = tuple((float(i), name) for i, name in enumerate(names))
    y = Axis(limits=(len(names) - 0.4, -0.6), ticks=ticks)
    groups = named.groupby(list(shown.panels), sort=False)
    panels = [_panel(part, names, y, shown) for _, part in groups]
    return described(
        panels, "claims", columns=len(panels), height=0.3 + 0.16 * len(names), share="y", keys=KEYS,
        collect=False, letters=False,
    )  # fmt: skip


def _rows(claims: pd.DataFrame, shown: Shown) -> pd.DataFrame:
    rows = select(checked(claims, "claims"), claim=shown.claims)
    if rows.empty:
        raise NothingToDrawError(f"The claims table has no comparison of {' or '.join(shown.claims)}.")
    return some(rows, "value in the claims table")


def _panel(rows: pd.DataFrame, names: Sequence[str], y: Axis, shown: Shown) -> Panel:
    first = rows.iloc[0]
    kappa, margin = first["claim"] == AGREEMENT, float(first["margin"])
    zero = Reference(0.0, "", vertical=True, mark=NOTHING, low=-margin, high=margin)
    level = Reference(margin, "", vertical=True, mark=ENOUGH) if kappa else zero
    points = [_point(number, row, names.index(row["row"])) for number, (_, row) in enumerate(rows.iterrows())]
    return Panel(_title(first, shown), _axis(rows, kappa=kappa), y, (level, *points))


def _title(row: pd.Series, shown: Shown) -> str:
    claim, quantity, comparison = (str(row[name]) for name in ("claim", "quantity", "comparison"))
    if claim == "gain" and comparison.endswith("mean over strengths"):
        return "all strengths"
    if claim in ("depth", "collapse"):
        return f"{claim}: {quantity.removesuffix(' success').removesuffix(' answers')}"
    if claim in ("success", AGREEMENT):
        return "attack minus coherent" if claim == "success" else "judge, phrases"
    return comparison if "comparison" in shown.panels and claim != "gain" else quantity


def _point(number: int, row: pd.Series, at: int) -> Points:
    mark, said = method_mark(str(row["method"]), row["k"]), str(row["verdict"])
    value, low, high = (np.array([float(row[name])]) for name in ("value", "low", "high"))
    y = np.array([float(at)])
    curve = Curve(value, y, y, y, np.array([float(row["n"])]), low, high)
    note = f"{row['edit']} against {row['reference']}: {said}"
    look: dict[str, Any] = {"hollow": said == NOT_SUPPORTED, "size": SMALL if said == CANNOT_TELL else LARGE}
    return Points(f"{number}:{mark.label}", mark, curve, notes=(note,), legend=False, **look)


def _axis(rows: pd.DataFrame, *, kappa: bool) -> Axis:
    """Kappa as it is, or a difference of shares in percentage points."""
    ends = [*finite(rows, "value", "low", "high"), 0.0]
    margin = float(rows["margin"].iloc[0])
    low, high = min(*ends, 0.0 if kappa else -margin), max(*ends, 1.0 if kappa else margin)
    room = 0.06 * (high - low)
    step = next((step for step in STEPS if (high - low) / step <= 4), STEPS[-1])
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    places = [number * step for number in range(first, last + 1)]
    texts = [f"{place:.1f}" if kappa else f"{100 * place:.0f}" for place in places]
    named = tuple((place, text.replace("-", "\u2212")) for place, text in zip(places, texts, strict=True))
    return Axis("kappa" if kappa else "points", limits=(low - room, high + room), ticks=named)


def caption_of(name: str) -> Callable[..., str]:
    """What the figure of that name shows, as a function of its table."""
    shown = SHOWN[name]

    def caption(claims: pd.DataFrame, **_: object) -> str:
        rows = _rows(claims, shown)
        compared = rows[rows["claim"] != AGREEMENT]
        margins = [f"{100 * margin:g}" for margin in dict.fromkeys(compared["margin"])]
        said = ", ".join(f"{sum(rows['verdict'] == word)} {word}" for word in (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL))
        return (
            f"{shown.about} Differences in percentage points over the same prompts or items; bars: 95 % "
            f"intervals; band: the margin of {' or '.join(margins)} points; dotted: the least kappa that is "
            "called substantial. Filled: the claim is supported; hollow: it is not; small: this run cannot "
            f"tell ({said}). p-values corrected within the claim (Holm). n = {counts(rows)} prompts or items."
        )

    return caption
