"""What single coordinates hold of norms, distances and variance, by layer."""

import pandas as pd

from ot_lens.plots.description import LAYER, Axis, Description, Line, Panel, Reference, described
from ot_lens.plots.rows import at_position, checked, counts, curve, null_of, some
from ot_lens.plots.style import CLASSES, Mark
from ot_lens.samples import FIRST
from ot_lens.tables import select

FIRST_TOKEN = Mark("first token", "#7B5AA6", "diamond", "dot")
ROBUST = {
    "none": Mark("all coordinates", "#555B65", "circle", "solid"),
    "exclude": Mark("without rogue coordinates", "#2E8540", "square", "dash"),
    "scale": Mark("scaled coordinates", "#B5762A", "up", "dot"),
}
SHARE = Axis("share (%)", "share", (0.0, 1.0))
MASSIVE = Reference(1000.0, "massive")
# quantity -> title, y axis
OF_TOKENS = {
    "norm": ("norm", Axis("activation", "log")),
    "median_ratio": ("largest coordinate", Axis("times the median", "log")),
    "norm_share": ("share of squared norm", SHARE),
}
OF_CLASSES = {
    "w2_squared": ("$W_2^2$", Axis("activation²", "log")),
    "w2_share": ("largest share of $W_2^2$", SHARE),
    "pc1_share": ("first component", SHARE),
}


def massive_activations(massive: pd.DataFrame, *, position: str | None = None) -> Description:
    """Norms, the largest coordinate of each class and of the first token, and W2 and PCA without rogue ones.

    Args:
        massive: The table of a study: rows of `geometry.massive_activations`.
    """
    rows = some(_drawable(checked(massive, "massive")), "value in the massive table")
    first, later = (rows[known] for known in ((rows["position"] == FIRST), (rows["position"] != FIRST)))
    later = at_position(later, position)
    panels = [_of_tokens(name, *OF_TOKENS[name], first, later) for name in OF_TOKENS]
    return described([*panels, *(_of_classes(later, name, *OF_CLASSES[name]) for name in OF_CLASSES)], "massive")


def _drawable(table: pd.DataFrame) -> pd.DataFrame:
    """Without what a logarithmic axis cannot show."""
    ends = {name: table[name].where(table[name] > 0) for name in ("low", "null_low") if name in table}
    return table[table["value"] > 0].assign(**ends)


def _of_tokens(name: str, title: str, y: Axis, first: pd.DataFrame, later: pd.DataFrame) -> Panel:
    known = [(label, mark, select(later, **{"class": label})) for label, mark in CLASSES.items()]
    known.append((FIRST, FIRST_TOKEN, select(first, **{"class": "harmful"})))
    lines = [Line(f"{name}/{label}", mark, curve(select(rows, quantity=name))) for label, mark, rows in known]
    return Panel(title, LAYER, y, (*((MASSIVE,) if name == "median_ratio" else ()), *lines))


def _of_classes(rows: pd.DataFrame, name: str, title: str, y: Axis) -> Panel:
    own = {how: select(rows, quantity=name, robust=how) for how in ROBUST}
    if name == "w2_squared":
        del own["scale"]  # in other units
    lines = [Line(f"{name}/{how}", ROBUST[how], curve(part)) for how, part in own.items()]
    bands = [band for how, part in own.items() for band in null_of(part, f"{name}/{how}")]
    return Panel(title, LAYER, y, (*(bands if name == "w2_squared" else ()), *lines))


def caption(massive: pd.DataFrame, **_: object) -> str:
    """What `massive_activations` shows."""
    later = massive[massive["position"] != FIRST]
    rogue = select(later, quantity="rogue_ratio")
    found = ", ".join(map(str, sorted(rogue["coordinate"].dropna().astype(int).unique()))) or "none"
    return (
        "What single coordinates of the residual stream hold, by layer. Top: of each class at the position of "
        "the fit, and of the first token, the mean norm; the coordinate of the largest mean magnitude, over "
        "the median magnitude of the same hidden state (dotted: massive by Sun et al. 2024, if also above "
        "100); and its share of the squared norm. Bottom, of both classes: the squared Gaussian W2 distance "
        "with all coordinates and without the rogue ones (on average at least "
        "a set number of times the median; here "
        f"{found}), with the mean (dotted) and 95 % band under permuted labels in grey; the largest share of it that one "
        "coordinate has; and the share of the pooled variance of the first principal component. Scaled: each "
        "coordinate in units of its standard deviation. Tints: 95 % intervals over prompts. "
        f"n = {counts(massive)} prompts."
    )
