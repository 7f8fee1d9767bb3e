"""The tokens that the refusal direction and the axes of a transport write, layer by layer."""

import re

import numpy as np
import pandas as pd

from ot_lens.plots.description import Axis, Curve, Description, Panel, Points, described
from ot_lens.plots.rows import layers_of, numbers, rows_of, spread_out
from ot_lens.plots.style import CLASSES, NULL, Mark, method_mark, split_label
from ot_lens.tables import select

SIDES = {
    "top": ("raised most", Mark("first token raised", CLASSES["harmful"].color, "circle")),
    "bottom": ("lowered most", Mark("first token lowered", CLASSES["harmless"].color, "circle")),
}
RANDOM = Mark("random directions", NULL.color, NULL.marker)
# Layers, axes, tokens of a layer and characters of a token that are shown at most.
MOST_LAYERS, MOST_AXES, TOKENS, LETTERS = 16, 2, 3, 14
# What fonts have and no markup reads: ASCII without the dollar, Latin letters, signs of punctuation.
PLAIN = re.compile(r"[ -#%-~\u00a1-\u00ac\u00ae-\u024f\u2013\u2014\u2018-\u201d\u2026\u2039\u203a]")
BRACKETS = str.maketrans("<>", "‹›")


def readout(readout: pd.DataFrame) -> Description:
    """First tokens at either end of the direction, and of the axes of the map that has most of them.

    Args:
        readout: The table of `ot_lens.readout`.
    """
    rows = rows_of(readout, "readout")
    vectors = {"direction": select(rows, kind="direction"), **_axes(rows)[1]}
    panels = [
        _panel(f"{name}: {words}", select(own, side=side), mark)
        for name, own in vectors.items()
        for side, (words, mark) in SIDES.items()
    ]
    return described([panel for panel in panels if panel is not None], "readout", columns=2, height=2.0)


def _axes(rows: pd.DataFrame) -> tuple[str, dict[str, pd.DataFrame]]:
    """The method that has most axes, of equals the last, and its first axes."""
    axes = select(rows, kind="axis")
    if axes.empty:
        return "", {}
    count = axes.groupby("method", sort=False)["number"].nunique()
    method = str(count[count == count.max()].index[-1])
    own, shown = select(axes, method=method), min(int(count.max()), MOST_AXES)
    return method, {f"axis {n + 1}": select(own, number=n) for n in range(shown)}


def _panel(title: str, rows: pd.DataFrame, mark: Mark) -> Panel | None:
    layers = spread_out(layers_of(rows), MOST_LAYERS)
    if not layers:
        return None
    ordered = rows[rows["layer"].isin(layers)].sort_values(["layer", "rank"], kind="stable")
    first = ordered.drop_duplicates("layer")
    at = np.arange(len(first), dtype=float)
    ticks = tuple(
        (float(i), f"{layer}: {_words(select(ordered, layer=layer))}") for i, layer in enumerate(first["layer"])
    )
    unknown = np.full(len(first), np.nan)
    mean, low, high, value = (
        numbers(first[name]) for name in ("null_mean", "null_low", "null_high", "logit_change")
    )
    elements = (
        Points("random", RANDOM, Curve(mean, at, unknown, unknown, None, low, high), size=2.0),
        Points("first", mark, Curve(value, at, unknown, unknown), size=4.6),
    )
    y = Axis("layer", ticks=ticks, limits=(-0.5, len(first) - 0.5))
    return Panel(title, Axis("logit change"), y, elements)


def _words(rows: pd.DataFrame) -> str:
    return ", ".join(_shown(str(token)) for token in rows["token"].head(TOKENS))


def _shown(token: str) -> str:
    """A token, without what a font may lack or markup may read."""
    seen = token.strip()
    text = "".join(
        c if seen and PLAIN.fullmatch(c) else f"U+{ord(c):04X}" for c in (seen or token).translate(BRACKETS)
    )
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def caption(readout: pd.DataFrame, **_: object) -> str:
    """What `readout` shows."""
    draws = ", ".join(str(n) for n in sorted(set(readout["draws"])))
    method, axes = _axes(readout)
    of_map = f" and the first axes of {method_mark(*split_label(method)).label}" if axes else ""
    pointing = " Axes point towards the harmful mean." if axes else ""
    sizes = ", ".join(str(n) for n in sorted({*readout["n_harmful"]}))
    return (
        f"Tokens whose logits the refusal direction (difference in means){of_map} raise and lower most, read "
        f"through final norm and unembedding, the first {TOKENS} by layer; at most {MOST_LAYERS} layers. Vectors have root mean square 1. Points: logit change of the first token. Grey: mean "
        f"and 95 % band of the first token of {draws} random directions; tokens within it say nothing.{pointing} "
        f"n = {sizes} harmful prompts."
    )
