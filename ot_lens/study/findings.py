"""The findings of a sweep in sentences, never beyond its intervals."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from ot_lens.errors import RunFolderError
from ot_lens.io.untrusted import quoted
from ot_lens.localizers import BAND, LOCALIZERS, SPREAD
from ot_lens.tables import (
    ALL,
    INDUCE,
    LISTED,
    REMOVE,
    SEARCHED,
    baseline_of,
    best_singles,
    effects,
    layers_label,
    methods_of,
    not_controls,
    one_direction,
    select,
    single_effects,
    verdict,
)
from ot_lens.tables.verdict import LEVEL
from ot_lens.transport import PROJECTION, REFERENCES, TRANSPORT, find_method, method_label

# Share of answers, neither refused nor coherent, that a sentence mentions.
INCOHERENT = 0.10
COSTS = {
    "kl": "KL {:.3f} nats",
    "harmless_correct": "{:.0%} answered correctly",
    "perplexity": "perplexity {:.2f}",
}
CONCLUSION = {
    True: "one direction suffices to take most refusals away",
    False: "one direction does not suffice to take most refusals away",
    None: "whether one direction suffices is undecided",
}
# Of an ablation that takes most refusals away.
REPLACED = {
    True: CONCLUSION[True],
    False: "one direction takes most refusals away, but coherent answers do not take their place",
    None: "one direction takes most refusals away; whether coherent answers take their place is undecided",
}
SETS_OF_LAYERS = {
    ALL: "Edited at all layers at once",
    SEARCHED: "Best sets of layers, chosen on the validation prompts and measured on these",
    LISTED: "Listed sets of layers",
}


def summarize(table: pd.DataFrame, localizers: pd.DataFrame | None = None) -> list[str]:
    """Put a sweep into sentences: which layers matter, what each method achieves, and at what cost.

    Each sentence is about rows that were measured. Without answers the refusal score tells. The sweep says at
    which layers an edit works; only the localizers say which blocks make refusal.

    Args:
        table: A sweep (`localize`).
        localizers: What `locate` or `locate_by_layer` says of the same model.
    """
    makers = [] if localizers is None else list(_makers_sentences(localizers))
    verdicts = {transport: verdict(table, transport) for transport in (REMOVE, INDUCE)}
    if "refusal_rate" not in set(table["measure"]):
        start = "The refusal rate was not measured: answers were not generated."
        return [start, *_layers_sentences(verdicts[REMOVE], None), *makers]
    edits, singles, best = effects(table), single_effects(table), best_singles(table)
    base = baseline_of(edits).iloc[0]
    answered = {key: rows["layer"].nunique() for key, rows in methods_of(singles)}
    sentences = [
        f"Unedited, the model refuses {_refusal(base)} of {int(base['n'])} held-out harmful prompts"
        f"{_harmless_refusal(base)}.",
        *_one_direction_sentence(table, singles),
        *_comparison_sentences(table, best),
        *_layers_sentences(verdicts[REMOVE], singles),
        *makers,
        *(_method_sentence(row, verdicts, answered) for _, row in best.iterrows()),
    ]
    together = edits[(edits["set"] != LISTED) | edits["layer"].isna()]  # a listed single layer is told above
    groups = {start: select(together, set=name) for name, start in SETS_OF_LAYERS.items()}
    return sentences + [_together_sentence(start, rows) for start, rows in groups.items() if len(rows)]


def findings(tables: Mapping[str, pd.DataFrame], run: Path) -> list[str]:
    """`summarize` for tables that were read from files, and may have been altered."""
    try:
        return summarize(tables["localization"], tables.get("localizers"))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise RunFolderError(
            f"localization.parquet or localizers.parquet in {run / 'tables'} was altered "
            f"({quoted(str(error))}): restore it, or remove it and --resume."
        ) from error


def _refusal(row: pd.Series) -> str:
    return f"{row['refusal']:.0%} (95 % interval {row['low']:.0%} to {row['high']:.0%})"


def _harmless_refusal(base: pd.Series) -> str:
    share = base["harmless_refusal"]
    return "" if pd.isna(share) else f" and {share:.0%} of the harmless ones"


def _layers_sentences(removal: pd.DataFrame, singles: pd.DataFrame | None) -> Iterator[str]:
    """Which single layers matter: beyond the control band, else by refusal rate, else by refusal score."""
    if (removal["draws"] > 0).any():
        layers = _methods_by_layer(removal, "localized")
        if layers:
            yield (
                f"Refusal is removed beyond the control band, after Holm's correction over layers, at "
                f"{layers}. The band is what random subspaces and permuted labels do at equal rank."
            )
        else:
            yield (
                f"{_at_measured(removal)} no single-layer edit lowers refusal beyond the control band: "
                "nothing is localized."
            )
        return
    swept = removal["layer"].nunique()
    if singles is not None and len(singles):
        measured = sorted(map(int, singles["layer"].unique()))
        plural = "s" if len(measured) > 1 else ""
        some = (
            f"With answers at layer{plural} {layers_label(measured)} only, a"
            if len(measured) < swept
            else "A"
        )
        layers = _methods_by_layer(singles, "lowers")
        if layers:
            yield f"{some} single-layer edit lowers the refusal rate at {layers}."
        else:
            yield f"{_at_measured(singles)} no single-layer edit lowers the refusal rate."
    if len(removal) and (singles is None or singles["layer"].nunique() < swept):
        yield _score_sentence(removal)
    if len(removal) or (singles is not None and len(singles)):
        yield "No control was measured, so nothing is localized."


def _at_measured(rows: pd.DataFrame) -> str:
    """The layers that were measured, as the beginning of a sentence about none of them."""
    layers = sorted(map(int, rows["layer"].unique()))
    if len(layers) == 1:
        return f"At layer {layers[0]}, the only one measured,"
    return f"At the layers measured ({layers_label(layers)})"


def _score_sentence(removal: pd.DataFrame) -> str:
    """Where the refusal score falls, by its interval and after Holm's correction."""
    falls = removal[(removal["high"] < 0) & ~(removal["p_holm"] >= LEVEL)]
    if falls.empty:
        return f"{_at_measured(removal)} the refusal score of harmful prompts does not fall."
    most = falls.sort_values("shift").iloc[0]
    layers = layers_label(sorted(map(int, falls["layer"].unique())))
    return (
        f"The refusal score of harmful prompts falls at layers {layers}, most under "
        f"{method_label(most['method'], most['k'])} at layer {int(most['layer'])}: by "
        f"{-most['shift']:.1f} nats (95 % interval {-most['high']:.1f} to {-most['low']:.1f})."
    )


def _makers_sentences(localizers: pd.DataFrame) -> Iterator[str]:
    """Which blocks make refusal and where it can be changed: two questions, which may have two answers."""
    ends = {f"band_{name}": name for name in ("first", "last", "low", "high")}
    if "band_first" in localizers:
        localizers = localizers.drop(columns=["low", "high"]).rename(columns=ends)
    one = localizers.drop_duplicates("localizer").set_index("localizer")
    maker = one[one["recommended"].astype(bool)].iloc[0]
    label = {known.name: known.label.lower() for known in LOCALIZERS}[str(maker.name)]
    yield (
        f"Which blocks make refusal (localizer: {label}, {maker['n_harmful']} harmful and "
        f"{maker['n_harmless']} harmless prompts): {_located(maker)}."
    )
    edit = one[one.index == "edit_last"].iloc[0]
    text = f"Where a mean shift of the last token changes it: {_located(edit)}"
    if maker["verdict"] == edit["verdict"] == BAND:
        apart = max(maker["first"] - edit["last"], edit["first"] - maker["last"]) > 0
        text += (
            ". The two do not meet: edits work where refusal is read, not where it is made"
            if apart
            else ". The two bands meet"
        )
    yield f"{text}."


def _located(row: pd.Series) -> str:
    """What a localizer says, as the end of a sentence."""
    if row["verdict"] == BAND:
        first, last = int(row["first"]), int(row["last"])
        layers = f"layer {first} stands" if first == last else f"layers {first}-{last} stand"
        return f"{layers} out (95 % interval {row['low']} to {row['high']}, p = {row['spread']:.3f})"
    if row["verdict"] == SPREAD:
        return (
            f"spread over the layers; those that stand out most hold {row['share']:.0%} of the effect "
            f"(p = {row['spread']:.3f})"
        )
    return f"no layer has an effect (p = {row['effect']:.2f})"


def _methods_by_layer(rows: pd.DataFrame, flag: str) -> str:
    """Layers where the flag is set for at least one method, with the number of methods."""
    counts = rows.groupby("layer")[flag].agg(["sum", "size"])
    return ", ".join(
        f"layer {layer} ({int(row['sum'])} of {int(row['size'])} methods)"
        for layer, row in counts[counts["sum"] > 0].iterrows()
    )


def _one_direction_sentence(table: pd.DataFrame, singles: pd.DataFrame) -> list[str]:
    best = one_direction(table)
    if best is None:
        return []
    row = select(singles, method="rfa", layer=best.layer).iloc[0]
    return [
        f"With the best single direction ablated at every block (RFA, direction of layer {best.layer}), "
        f"{best.refusal:.0%} (95 % interval {best.low:.0%} to {best.high:.0%}) of {best.n} harmful "
        f"prompts are still refused{_coherent(row)}: {_conclusion(best.suffices, row)}."
    ]


def _conclusion(suffices: bool | None, row: pd.Series) -> str:
    """A model that answers nothing refuses nothing either: coherent answers count where they are known."""
    if not suffices or pd.isna(row["coherent"]):
        return CONCLUSION[suffices]
    return REPLACED[True if row["coherent_low"] > 0.5 else False if row["coherent_high"] < 0.5 else None]


def _method_sentence(
    best: pd.Series, verdicts: dict[str, pd.DataFrame], answered: dict[tuple[str, int | None], int]
) -> str:
    start = method_label(best["method"], best["k"])
    beyond = _beyond_band(best, verdicts)
    if not best["lowers"]:
        known = answered[best["method"], None if pd.isna(best["k"]) else int(best["k"])]
        which = (
            f"none of the {known} layers measured lowers"
            if known > 1
            else f"layer {int(best['layer'])} does not lower"
        )
        return f"{start}: {which} the refusal rate (best: {_refusal(best)}){beyond}."
    return (
        f"{start}: best at layer {int(best['layer'])}, {_refusal(best)} still refused"
        f"{_coherent(best)}{_correct(best)}; cost on harmless prompts: {_cost(best)}{beyond}."
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
                f"{verb} at layer{'s' if len(layers) > 1 else ''} {layers_label(layers)} "
                f"(most at {int(furthest['layer'])}, by {furthest['margin']:.1f} nats)"
            )
        elif len(controlled):
            clauses.append(f"{verb} at no layer")
    return f"; beyond the control band it {' and '.join(clauses)}" if clauses else ""


def _coherent(row: pd.Series) -> str:
    """How many answers are answers; a low refusal rate is no success where the model is destroyed."""
    if pd.isna(row["coherent"]):
        return ""
    lost = 1 - row["refusal"] - row["coherent"]
    rubbish = f" (the other {lost:.0%} are no coherent answers)" if lost > INCOHERENT else ""
    return f", {row['coherent']:.0%} answered coherently{rubbish}"


def _correct(row: pd.Series) -> str:
    return "" if pd.isna(row["correct"]) else f" and {row['correct']:.0%} answered correctly"


def _cost(row: pd.Series) -> str:
    costs = [text.format(row[name]) for name, text in COSTS.items() if not pd.isna(row[name])]
    return ", ".join(costs) or "not measured"


def _together_sentence(start: str, together: pd.DataFrame) -> str:
    parts = [
        f"{method_label(row['method'], row['k'])}{'' if row['set'] == ALL else f' at {row.layers},'} "
        f"{row['refusal']:.0%} refused{_coherent(row)}{_correct(row)}"
        for _, row in together.iterrows()
    ]
    return f"{start}: {'; '.join(parts)}."


def _compared_as(method: str) -> str:
    """The family of a method; shifts and coordinate-wise maps are references for both."""
    known = find_method(method)
    if known is None or method in REFERENCES:
        return ""
    return TRANSPORT if known.family == TRANSPORT else PROJECTION


def _comparison_sentences(table: pd.DataFrame, best: pd.DataFrame) -> list[str]:
    """Transport against projection at their best single layers, as far as the intervals separate them.

    Compared by correct answers where they are known, else by coherent ones, else by refusals.
    """
    names = {method for (method, _), _ in methods_of(not_controls(table))}
    if {PROJECTION, TRANSPORT} - {_compared_as(method) for method in names}:
        return ["Transport and projection were not both in this sweep, so they are not compared."]
    chosen = {}
    for family in (PROJECTION, TRANSPORT):
        rows = best[[_compared_as(method) == family for method in best["method"]]]
        if rows.empty:
            return []
        ranked = rows.assign(wrong=-rows["correct"].fillna(rows["coherent"]).fillna(0))
        chosen[family] = ranked.sort_values(["wrong", "refusal"]).iloc[0]
    projection, transport = chosen[PROJECTION], chosen[TRANSPORT]
    text = f"Best single layers: transport, {_at(transport)}; projection, {_at(projection)}"
    known = [
        name for name in ("correct", "coherent") if pd.notna(transport[name]) and pd.notna(projection[name])
    ]
    quantity = f"{known[0]} answers" if known else "refusals"
    low, high = (f"{known[0]}_low", f"{known[0]}_high") if known else ("low", "high")
    if transport[high] >= projection[low] and projection[high] >= transport[low]:
        return [f"{text}. The intervals of their {quantity} overlap: this sweep does not tell them apart."]
    transport_is_higher = transport[low] > projection[high]
    winner = "Transport" if transport_is_higher == bool(known) else "Projection"
    return [f"{text}. {winner} does better: the intervals of their {quantity} do not overlap."]


def _at(row: pd.Series) -> str:
    name = method_label(row["method"], row["k"])
    share = f"{row['refusal']:.0%} refused{_coherent(row)}{_correct(row)}"
    return f"{name} at layer {int(row['layer'])} with {share}"
