"""The layers that joint fits chose, next to those at which single edits have the largest effect."""

import pandas as pd

from ot_lens.errors import FitError
from ot_lens.localization.candidates import NOTHING_CHOSEN
from ot_lens.tables import ALL, layers_of_label, methods_of, most_effective_layer, reported, select
from ot_lens.transport import METHODS

COLUMNS = (
    "method",
    "strength",
    "chosen",
    "compared_with",
    "k",
    "most_effective_layer",
    "is_chosen",
    "distance",
)


def layer_choices(table: pd.DataFrame) -> pd.DataFrame:
    """Compare the layers that each joint fit chose with every other method's most effective single layer.

    Args:
        table: A sweep (`localize`) of a joint method, such as "linear_act_joint", and of others.

    Returns:
        One row per joint fit and other method: method, strength, chosen (its layers, "" for none),
        compared_with and k (the other method), most_effective_layer (see
        `ot_lens.tables.most_effective_layer`), is_chosen (whether that is among the chosen ones), distance
        (in layers to the nearest chosen one; missing if there is none).

    Raises:
        FitError: If the sweep has no joint method.
    """
    joint = select(reported(table), method={n for n, known in METHODS.items() if known.joint}, set=ALL)
    if joint.empty:
        raise FitError("The sweep has no joint fit: add 'linear_act_joint' to its methods.")
    best = {other: most_effective_layer(rows) for other, rows in methods_of(reported(table))}
    rows = []
    for row in joint.drop_duplicates("key").itertuples(index=False):
        chosen = [] if NOTHING_CHOSEN in str(row.note) else layers_of_label(str(row.layers))
        label = str(row.layers) if chosen else ""
        for (other, k), layer in best.items():
            if layer is not None:
                distance = min((abs(layer - own) for own in chosen), default=None)
                rows.append((row.method, row.strength, label, other, k, layer, layer in chosen, distance))
    types = {"k": "Int64", "most_effective_layer": "Int64", "is_chosen": "bool", "distance": "Int64"}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)
