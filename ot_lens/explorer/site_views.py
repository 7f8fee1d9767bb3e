"""Views of sites, a layer and a token: where the decision travels, who writes the direction, what it says."""

from collections.abc import Iterator

import pandas as pd

from ot_lens.errors import NothingToDrawError
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.state import State
from ot_lens.explorer.view import Drawing, View, read
from ot_lens.plots.screen.text import interval
from ot_lens.tables import select

MAP = ["kind", "module", "patched"]
MOST_TOLD = 3


def _interchange(run: OpenRun, state: State) -> Drawing:
    table = run.table("interchange")
    return Drawing("interchange_map", {"interchange": table}, [read("interchange")], note=_told(table, state))


def _told(table: pd.DataFrame, state: State) -> str:
    """The cells at the chosen layer and token, in words."""
    here = select(
        table.assign(position=table["position"].astype(str)), layer=state.layer, position=state.site
    )
    if here.empty:
        return f"Nothing was replaced at layer {state.layer} and token {state.site}."
    parts = []
    for kind, module, patched in here[MAP].drop_duplicates().itertuples(index=False):
        row = select(here, kind=kind, module=module, patched=patched).iloc[0]
        null = "" if pd.isna(row["null_mean"]) else f", same class {row['null_mean']:+.2f}"
        value = interval(row["value"], row["low"], row["high"], "linear")
        parts.append(
            f"{module}, {patched} ({kind.replace('_', '-')}): {value} nats{null}, n = {row['n']:.0f}"
        )
    token = str(here["token"].iloc[0])
    named = state.site if token == state.site else f"{state.site} ({token})"
    return f"Layer {state.layer}, token {named}. {'; '.join(parts)}."


def _readout(run: OpenRun, state: State) -> Drawing:
    here = select(run.table("readout"), layer=state.layer)
    if here.empty:
        raise NothingToDrawError(f"The readout table does not contain layer {state.layer}.")
    code = [read("readout"), f"readout = select(readout, layer={state.layer})"]
    return Drawing("readout", {"readout": here}, code, note=f"Layer {state.layer}.")


def _contributions(run: OpenRun, state: State) -> Drawing:
    table = run.table("contributions")
    note = f"Largest class differences of layer {state.layer}: {'; '.join(_largest(table, state)) or 'none'}."
    return Drawing("contributions", {"contributions": table}, [read("contributions")], note=note)


def _largest(table: pd.DataFrame, state: State) -> Iterator[str]:
    rows = select(table, prompts="difference", layer=state.layer)
    for _, row in (
        rows.sort_values("value", key=abs, ascending=False, kind="stable").head(MOST_TOLD).iterrows()
    ):
        name = row["component"] if pd.isna(row["head"]) else f"head {row['head']:.0f}"
        value = interval(row["value"], row["low"], row["high"], "linear")
        yield f"{name} {value}, p = {row['p_holm']:.2g}"


INTERCHANGE = View(
    "interchange",
    "Where the decision travels",
    "How far the refusal score follows activations of the other class, over layers and tokens. Click a cell, "
    "or choose layer and token above: the other views follow, and Transport against projection shows the "
    "distribution with and without the edits at that layer.",
    ("layers", "site"),
    _interchange,
    sites=True,
    told=("layers", "site"),
)
CONTRIBUTIONS = View(
    "contributions",
    "Which parts write the direction",
    "Difference between the classes in what each head, attention and MLP adds along the refusal direction.",
    ("layers",),
    _contributions,
    told=("layers",),
)
READOUT = View(
    "readout",
    "What the direction says",
    "Tokens whose logits the direction, the axes of the maps and their mean displacement at the chosen layer "
    "raise and lower, through the final norm and the unembedding.",
    ("layers",),
    _readout,
)
