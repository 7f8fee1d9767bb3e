"""The comparisons behind each claim: two sides, a quantity, its paired difference and test."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ot_lens.behaviour import agreement
from ot_lens.paper_study.evidence import (
    ASR,
    COHERENT,
    DEGENERATE,
    JUDGED,
    STRENGTH,
    Edit,
    Measured,
    both_known,
    named,
)
from ot_lens.paper_study.frontier import gain, on_known
from ot_lens.paper_study.verdicts import AGREE, MORE, NO_LOSS, SAME
from ot_lens.statistics import Estimate, mcnemar, mean, rate_difference, sign_flip
from ot_lens.tables import UNEDITED, chosen_edits
from ot_lens.transport import find_method, method_label

PCA_OT, RFA, LINEAR_ACT = "pca_ot", "rfa", "linear_act"
UNCHANGED = Edit(UNEDITED, "unedited")
BINARY = (0.0, 1.0)
Differences = Float[np.ndarray, " n"]
Flags = Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Question:
    """What is compared, and the claim that it bears on; `about` names what a published number would be of."""

    claim: str
    statement: str
    comparison: str
    quantity: str
    kind: str = MORE
    about: str = ""


@dataclass(frozen=True)
class Comparison:
    """The answer to a question: one edit against another."""

    question: Question
    edit: Edit
    reference: Edit
    estimate: Estimate
    p_value: float
    test: str


def chosen(run: Measured, layers: Sequence[int] | None = None) -> dict[str, dict[str, Edit]]:
    """The edits chosen on validation prompts and measured on test prompts, by method and role."""
    known, found = set(run.edits["key"]), dict[str, dict[str, Edit]]()
    for row in chosen_edits(run.validation, layers).itertuples(index=False):
        if row.key in known:
            found.setdefault(str(row.label), {})[str(row.role)] = named(row)
    return found


def in_layers(edits: dict[str, dict[str, Edit]]) -> dict[str, dict[str, Edit]]:
    """Methods whose edit of one layer leaves the others alone."""
    kept = {}
    for label, roles in edits.items():
        known = find_method(next(iter(roles.values())).method)
        if known is None or not known.everywhere:
            kept[label] = roles
    return kept


def few_layers(run: Measured) -> Iterator[Comparison]:
    """One or two layers against all of them, whichever way these were fitted."""
    statement = "One or two layers beat the full network."
    names = {
        "single": "best layer",
        "pair": "best pair",
        "all": "all layers",
        "sequential": "all, sequential",
    }
    for roles in in_layers(chosen(run)).values():
        for few in ("single", "pair"):
            for whole in ("all", "sequential"):
                if few in roles and whole in roles:
                    about = f"{names[few]} minus {names[whole]}"
                    for quantity in run.successes:
                        question = Question("layers", statement, about, quantity)
                        yield from _rates(run, question, roles[few], roles[whole])


def by_depth(
    run: Measured, band: Sequence[int], n_layers: int, late: float, seed: int
) -> Iterator[Comparison]:
    """The best layer of the band against the best one outside; and layers beyond a share of the depth."""
    layers = sorted({int(name) for name in run.edits.loc[run.edits["role"] == "single", "layers"]})
    inside, outside = ([n for n in layers if (n in band) == wanted] for wanted in (True, False))
    best, others = (in_layers(chosen(run, part)) for part in (inside, outside))
    statement = "The layers at 40-60 % of the depth beat the others."
    for label in [label for label in best if label in others]:
        for quantity in run.successes:
            question = Question("depth", statement, "best layer inside minus best outside", quantity)
            yield from _rates(run, question, best[label]["single"], others[label]["single"])
    beyond = [n for n in layers if n > late * n_layers]
    yield from _collapse(run, inside, beyond, late, seed)


def _collapse(
    run: Measured, inside: Sequence[int], beyond: Sequence[int], late: float, seed: int
) -> Iterator[Comparison]:
    """Means over layers of each prompt's outcome: all of the band against all beyond a share of the depth."""
    if not (inside and beyond):
        return
    statement = f"Edits beyond {100 * late:.0f} % of the depth collapse."
    singles = run.edits[run.edits["role"] == "single"]
    for _, rows in singles.groupby("label", sort=False):
        first = named(next(rows.itertuples(index=False)))
        known = find_method(first.method)
        if known is not None and known.everywhere:
            continue
        label = method_label(first.method, first.k)
        sides = [
            (Edit("", f"{label}, {_spanned(part)}", first.method, first.k), _keys(rows, part))
            for part in (inside, beyond)
        ]
        (band, band_keys), (end, end_keys) = sides
        if not (band_keys and end_keys):
            continue
        for quantity, sign, about in (
            (COHERENT, 1, f"40-60 % minus beyond {100 * late:.0f} %"),
            (DEGENERATE, -1, f"beyond {100 * late:.0f} % minus 40-60 %"),
        ):
            difference = sign * (_mean_flags(run, band_keys, quantity) - _mean_flags(run, end_keys, quantity))
            question = Question("collapse", statement, about, quantity)
            edit, reference = (band, end) if sign > 0 else (end, band)
            yield from _means(question, edit, reference, difference, seed)


def _keys(rows: pd.DataFrame, layers: Sequence[int]) -> list[str]:
    kept = rows[rows["layers"].isin([str(layer) for layer in layers])].drop_duplicates("layers")
    return [str(key) for key in kept["key"]]


def _spanned(layers: Sequence[int]) -> str:
    return f"mean of layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"


def _mean_flags(run: Measured, keys: Sequence[str], name: str) -> Differences:
    return np.mean([run.flags(key, name) for key in keys], axis=0)


def at_equal_cost(run: Measured, seed: int) -> Iterator[Comparison]:
    """PCA-OT against RFA and each fitting of Linear-AcT, at no larger cost than PCA-OT's."""
    edits = [edit for roles in chosen(run).values() for role, edit in roles.items() if _is_tested(edit, role)]
    others = [edit for roles in chosen(run).values() for role, edit in roles.items() if _is_rival(edit, role)]
    for edit in edits:
        for other in others:
            yield from _gains(run, edit, other, seed)


def _is_tested(edit: Edit, role: str) -> bool:
    return edit.method == PCA_OT and role in ("single", "pair")


def _is_rival(edit: Edit, role: str) -> bool:
    return edit.method == RFA or (edit.method == LINEAR_ACT and role != "pair")


def _gains(run: Measured, edit: Edit, other: Edit, seed: int) -> Iterator[Comparison]:
    statement = f"PCA-OT succeeds more often than {method_label(other.method)} at equal {run.cost_name}."
    coherent, success = run.successes
    for quantity, whole in ((coherent, False), (success, False), (coherent, True)):
        own, rival = run.frontier(edit.key, quantity), run.frontier(other.key, quantity)
        if own is None or rival is None:
            continue
        own, rival = on_known(own, rival)
        if not own.success.shape[1]:
            continue
        estimate, p = gain(own, rival, seed=seed, whole=whole)
        about = f"at equal {run.cost_name}" + (", mean over strengths" if whole else "")
        question = Question("gain", statement, about, quantity, about=other.method)
        yield Comparison(question, edit, other, estimate, p, "joint_bootstrap")


def sensitivity(run: Measured) -> Iterator[Comparison]:
    """Each variant against the edit that it varies."""
    known = {str(row.key): named(row) for row in run.edits.itertuples(index=False)}
    rows = run.variants[run.variants["axis"] != STRENGTH].drop_duplicates(["of", "axis", "level"])
    for row in rows.itertuples(index=False):
        reference = known.get(str(row.of))
        if reference is None:
            continue
        edit = Edit(str(row.key), f"{reference.name}, {row.axis} {row.level}", reference.method, reference.k)
        statement = f"The result does not depend on {NAMES[str(row.axis)]}."
        about = f"{row.axis} {row.level} minus chosen"
        question = Question("sensitivity", statement, about, COHERENT, SAME)
        yield from _rates(run, question, edit, reference)


NAMES = {"k": "the rank", "lift": "the lift", "tokens": "the token scope"}


def kept_capability(run: Measured, items: pd.DataFrame | None, seed: int) -> Iterator[Comparison]:
    """Each chosen edit against the unedited model, task by task, item by item."""
    if items is None or items.empty:
        return
    known = {str(row.key): named(row) for row in run.edits.itertuples(index=False)}
    unit = ["part", "item"]
    for (task, measure, kind), rows in items.groupby(["task", "measure", "filter"], sort=False):
        before = rows[rows["key"] == UNEDITED].set_index(unit)["value"]
        for key in [key for key in dict.fromkeys(rows["key"]) if key in known]:
            after = rows[rows["key"] == key].set_index(unit)["value"].reindex(before.index)
            about = f"{task}, {measure}" + ("" if kind == "none" else f" ({kind})")
            question = Question(
                "capability", "Capability is kept.", about, "accuracy", NO_LOSS, about=str(task)
            )
            yield from _scores(question, known[key], after, before, seed)


def _scores(
    question: Question, edit: Edit, after: pd.Series, before: pd.Series, seed: int
) -> Iterator[Comparison]:
    """The difference of two scores on the same items: of rates if they are 0 or 1, else of means."""
    pairs = pd.DataFrame({"after": after, "before": before}).dropna()
    a, b = (pairs[name].to_numpy(np.float64) for name in ("after", "before"))
    if not len(pairs):
        return
    binary = np.isin(pairs.to_numpy(), BINARY).all()
    tested = _of_rates(a > 0, b > 0) if binary else _of_means(a - b, seed)
    yield Comparison(question, edit, UNCHANGED, *tested)


def success_measures(run: Measured, seed: int) -> Iterator[Comparison]:
    """Attack success against coherent success; and the judge's success against the phrases'."""
    overstated = Question(
        "success",
        "The attack success rate counts answers that are no answers.",
        "attack success minus coherent success",
        "share of prompts",
    )
    agreed = Question(
        "agreement", "The judge and the phrases agree.", "judge against phrases", "Cohen's kappa", AGREE
    )
    for edit in [edit for roles in chosen(run).values() for edit in roles.values()]:
        asr, coherent = both_known(run.flags(edit.key, ASR), run.flags(edit.key, COHERENT))
        if len(asr):
            yield Comparison(overstated, edit, edit, *_of_rates(asr, coherent))
        judged, phrases = both_known(run.flags(edit.key, JUDGED), run.flags(edit.key, ASR))
        if len(judged):
            kappa = agreement(judged.tolist(), phrases.tolist(), seed=seed).kappa
            yield Comparison(agreed, edit, edit, kappa, float("nan"), "")


def _rates(run: Measured, question: Question, edit: Edit, reference: Edit) -> Iterator[Comparison]:
    """The difference of two rates on the same prompts, if there are any."""
    a, b = run.pair(edit.key, reference.key, question.quantity)
    if len(a):
        yield Comparison(question, edit, reference, *_of_rates(a, b))


def _means(
    question: Question, edit: Edit, reference: Edit, difference: Differences, seed: int
) -> Iterator[Comparison]:
    """The mean of each prompt's difference, where it is known."""
    known = difference[np.isfinite(difference)]
    if len(known):
        yield Comparison(question, edit, reference, *_of_means(known, seed))


def _of_rates(a: Flags, b: Flags) -> tuple[Estimate, float, str]:
    """The paired difference of two rates, its p-value, and the test."""
    return rate_difference(a, b), mcnemar(b.tolist(), a.tolist()), "mcnemar"


def _of_means(differences: Differences, seed: int) -> tuple[Estimate, float, str]:
    """The mean of paired differences, its p-value, and the test."""
    return mean(differences, seed=seed), sign_flip(differences, seed=seed), "sign_flip"
