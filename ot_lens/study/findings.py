"""The findings of a sweep in sentences, never beyond its intervals."""

from pathlib import Path

import pandas as pd

from ot_lens import tables
from ot_lens.errors import RunFolderError
from ot_lens.io.untrusted import quoted
from ot_lens.tables import ALL, INDUCE, LISTED, REMOVE, SEARCHED, controls_of, select
from ot_lens.transport import METHODS, REFERENCES, TRANSPORT, method_label

CONCLUSION = {
    True: "one direction suffices to take most refusals away",
    False: "one direction does not suffice to take most refusals away",
    None: "whether one direction suffices is undecided",
}
COSTS = {
    "kl": "KL {:.3f} nats",
    "harmless_correct": "{:.0%} answered correctly",
    "perplexity": "perplexity {:.2f}",
}
SETS_OF_LAYERS = {
    ALL: "Edited at all layers at once",
    SEARCHED: "Best sets of layers, chosen on the validation prompts and measured on these",
    LISTED: "Listed sets of layers",
}


def summarize(table: pd.DataFrame) -> list[str]:
    """Put a sweep into sentences: which layers matter, what each method achieves, and at what cost.

    Args:
        table: A sweep (`localize`).
    """
    if "refusal_rate" not in set(table["measure"]):
        return _without_answers(table)
    edits, best = tables.effects(table), tables.best_singles(table)
    base = tables.baseline_of(edits).iloc[0]
    verdicts = {transport: tables.verdict(table, transport) for transport in (REMOVE, INDUCE)}
    sentences = [
        f"Unedited, the model refuses {_refusal(base)} of {int(base['n'])} held-out harmful prompts and "
        f"{base['harmless_refusal']:.0%} of the harmless ones.",
        *_one_direction_sentence(table),
        *([_comparison_sentence(best)] if len(best) else []),
        _layers_sentence(table, verdicts[REMOVE], tables.single_layers(edits)),
        *(_method_sentence(row, verdicts) for _, row in best.iterrows()),
    ]
    groups = {start: select(edits, set=name) for name, start in SETS_OF_LAYERS.items()}
    return sentences + [_together_sentence(start, rows) for start, rows in groups.items() if len(rows)]


def findings(table: pd.DataFrame, run: Path) -> list[str]:
    """`summarize` for a table that was read from a file, and may have been altered."""
    try:
        return summarize(table)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise RunFolderError(
            f"{run / 'tables' / 'localization.parquet'} was altered ({quoted(str(error))}): restore it, or "
            "remove it and --resume."
        ) from error


def _without_answers(table: pd.DataFrame) -> list[str]:
    """What next-token measures alone allow us to say."""
    sentences = ["The refusal rate was not measured: answers were not generated."]
    if "refusal_score" in set(table["measure"]) and len(controls_of(table)):
        sentences.append(_layers_sentence(table, tables.verdict(table, REMOVE), table.iloc[:0]))
    return sentences


def _refusal(row: pd.Series) -> str:
    return f"{row['refusal']:.0%} (95 % interval {row['low']:.0%} to {row['high']:.0%})"


def _layers_sentence(table: pd.DataFrame, removal: pd.DataFrame, singles: pd.DataFrame) -> str:
    """A layer counts only above the control band; without controls the refusal rate alone is reported."""
    if controls_of(table).empty:
        layers = _methods_by_layer(singles, "lowers") or "no layer"
        return (
            f"A single-layer edit lowers the refusal rate at {layers}. "
            "No control was swept, so nothing is localized."
        )
    layers = _methods_by_layer(removal, "localized")
    if not layers:
        return "No single-layer edit lowers refusal beyond the control band: nothing is localized."
    return (
        f"Refusal is removed beyond the control band, after Holm's correction over layers, at {layers}. "
        "The band is what random subspaces and permuted labels do at equal rank."
    )


def _methods_by_layer(rows: pd.DataFrame, flag: str) -> str:
    """Layers where the flag is set for at least one method, with the number of methods."""
    counts = rows.groupby("layer")[flag].agg(["sum", "size"])
    return ", ".join(
        f"layer {layer} ({int(row['sum'])} of {int(row['size'])} methods)"
        for layer, row in counts[counts["sum"] > 0].iterrows()
    )


def _one_direction_sentence(table: pd.DataFrame) -> list[str]:
    best = tables.one_direction(table)
    if best is None:
        return []
    return [
        f"With the best single direction ablated at every block (RFA, direction of layer {best.layer}), "
        f"{best.refusal:.0%} (95 % interval {best.low:.0%} to {best.high:.0%}) of {best.n} harmful "
        f"prompts are still refused: {CONCLUSION[best.suffices]}."
    ]


def _method_sentence(best: pd.Series, verdicts: dict[str, pd.DataFrame]) -> str:
    start = method_label(best["method"], best["k"])
    beyond = _beyond_band(best, verdicts)
    if not best["lowers"]:
        return f"{start}: no single layer lowers the refusal rate (best: {_refusal(best)}){beyond}."
    return (
        f"{start}: best at layer {int(best['layer'])}, {_refusal(best)} still refused{_correct(best)}; "
        f"cost on harmless prompts: {_cost(best)}{beyond}."
    )


def _beyond_band(best: pd.Series, verdicts: dict[str, pd.DataFrame]) -> str:
    """Where the method removes and induces refusal beyond its control band, as the end of a sentence."""
    k = None if pd.isna(best["k"]) else best["k"]
    clauses = []
    for transport, verb in ((REMOVE, "removes refusal"), (INDUCE, "induces it on harmless prompts")):
        controlled = select(verdicts[transport], method=best["method"], k=k).query("draws > 0")
        localized = controlled[controlled["localized"]].sort_values("margin")
        if len(localized):
            layers = sorted(map(int, localized["layer"]))
            furthest = localized.iloc[-1]
            clauses.append(
                f"{verb} at layer{'s' if len(layers) > 1 else ''} {tables.layers_label(layers)} "
                f"(most at {int(furthest['layer'])}, by {furthest['margin']:.1f} nats)"
            )
        elif len(controlled):
            clauses.append(f"{verb} at no layer")
    return f"; beyond the control band it {' and '.join(clauses)}" if clauses else ""


def _correct(row: pd.Series) -> str:
    return "" if pd.isna(row["correct"]) else f" and {row['correct']:.0%} answered correctly"


def _cost(row: pd.Series) -> str:
    costs = [text.format(row[name]) for name, text in COSTS.items() if not pd.isna(row[name])]
    return ", ".join(costs) or "not measured"


def _together_sentence(start: str, together: pd.DataFrame) -> str:
    parts = [
        f"{method_label(row['method'], row['k'])}{'' if row['set'] == ALL else f' at {row.layers},'} "
        f"{row['refusal']:.0%} refused{_correct(row)}"
        for _, row in together.iterrows()
    ]
    return f"{start}: {'; '.join(parts)}."


def _comparison_sentence(best: pd.DataFrame) -> str:
    """Transport against projection at their best single layers, as far as the intervals separate them."""
    # Shifts and coordinate-wise maps are references for both.
    compared = best[[method in METHODS and method not in REFERENCES for method in best["method"]]]
    is_transport = [METHODS[method].family == TRANSPORT for method in compared["method"]]
    if len(set(is_transport)) < 2:
        return "Transport and projection were not both in this sweep, so they are not compared."
    order = compared.assign(wrong=-compared["correct"].fillna(0), transport=is_transport)
    firsts = order.sort_values(["transport", "wrong", "refusal"]).groupby("transport").head(1)
    projection, transport = (row for _, row in firsts.iterrows())
    text = f"Best single layers: transport, {_at(transport)}; projection, {_at(projection)}"
    answered = not (pd.isna(transport["correct"]) or pd.isna(projection["correct"]))
    low, high = ("correct_low", "correct_high") if answered else ("low", "high")
    quantity = "correct answers" if answered else "refusals"
    if transport[high] >= projection[low] and projection[high] >= transport[low]:
        return f"{text}. The intervals of their {quantity} overlap: this sweep does not tell them apart."
    transport_is_higher = transport[low] > projection[high]
    winner = "Transport" if transport_is_higher == answered else "Projection"
    return f"{text}. {winner} does better: the intervals of their {quantity} do not overlap."


def _at(row: pd.Series) -> str:
    name = method_label(row["method"], row["k"])
    return f"{name} at layer {int(row['layer'])} with {row['refusal']:.0%} refused{_correct(row)}"
