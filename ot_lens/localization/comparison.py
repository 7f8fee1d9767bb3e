"""All methods on one model: what each reaches, what it costs, and whether a monitor sees it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from ot_lens.activations import Activations, capture
from ot_lens.geometry import visibility
from ot_lens.localization.candidates import Candidate, candidates
from ot_lens.localization.measure import measure_sweep
from ot_lens.localization.methods import MethodSpec, as_methods, fit_maps
from ot_lens.localization.outside import with_domains
from ot_lens.localization.settings import SweepSettings, sweep_settings
from ot_lens.progress import Stage, silent
from ot_lens.prompts import ContrastSet
from ot_lens.tables import SINGLE, join, measured
from ot_lens.transport import METHODS, ActivationMap, method_named

# Compared with their constrained and gated forms as well.
SELECTIVE = ("mean_shift", "pca_ot", "gaussian_ot")
NEXT_TOKEN = ("refusal_score", "kl")
# Of the sweep's rows: measure and class of prompts.
REPORTED = (
    ("refusal_rate", "harmful"),
    ("coherent_success_rate", "harmful"),
    ("refusal_score", "harmful"),
    ("kl", "harmless"),
    ("out_of_domain_share", "harmful"),
)
COLUMNS = ("method", "k", "layer", "quantity", "prompts", "value", "low", "high", "n", "unit")
# Activations on which the cost of applying a map is timed.
TIMED = 4096


def compare_methods(
    model: Any,
    prompts: ContrastSet,
    methods: Sequence[str | Mapping[str, Any] | MethodSpec] | None = None,
    *,
    layers: str | Sequence[int] = "all",
    max_new_tokens: int = 24,
    batch_size: int = 64,
    resamples: int = 200,
    seed: int = 0,
    stage: Stage = silent,
) -> pd.DataFrame:
    """Every method at the layer where it removes most refusal: effect, cost, and visibility to a monitor.

    The layer of each method is chosen on the validation prompts, by the mean refusal score of harmful ones;
    everything else is measured on the test prompts.

    Args:
        model: A hooked model that refuses.
        prompts: `train` fits the maps, `val` chooses layers, `test` measures.
        methods: Methods as `localize` takes them; default: every method that is fitted to activations, and
            the null-space and hard-gate forms of the best known transports.
        layers: "all" or layer numbers to choose from.
        max_new_tokens: Token budget of an answer.
        batch_size: Prompts per batch.
        resamples: Of the null and the interval of the monitor's AUC.
        seed: Seed of intervals and of the monitor's folds.
        stage: Shows progress; see `ot_lens.progress`.

    Returns:
        One row per method and quantity, with value, low, high (95 %) and n: "refusal_rate",
        "coherent_success_rate", "refusal_score" (nats) and "out_of_domain_share" on harmful prompts, "kl" on
        harmless ones (nats), "monitor_auc" (how well the Mahalanobis distance of the last layer's activations
        tells edited harmful from the model's own harmless prompts), "fit" (processor seconds for a layer) and
        "cost" (processor microseconds per token and edited site). The last two have no interval. Rows of
        method "none" are the unedited model; a joint fit, which edits the layers that it chose, has no layer.

    Raises:
        FitError: If a method is unknown or cannot be fitted.
        HookError: If a layer does not exist.
        ActivationError: If there are fewer than 8 test prompts of a class.
    """
    specs = as_methods(all_methods() if methods is None else methods)
    settings = _settings(model, NEXT_TOKEN, layers, max_new_tokens, batch_size, seed)
    acts = capture(model, prompts.train, layers=settings.layers, batch_size=batch_size)
    maps: dict[MethodSpec, dict[int, ActivationMap]] = {}
    seconds: dict[MethodSpec, float] = {}
    with stage("maps", len(specs)) as step:
        for spec in specs:
            started = time.process_time()
            maps |= fit_maps(
                acts, [spec], layers=settings.layers, position=-1, model=model, prompts=prompts.train
            )
            seconds[spec] = (time.process_time() - started) / len(settings.layers)
            step(1)
    with stage("layers", 1) as step:
        chosen = _at_best_layers(model, prompts, maps, settings)
        step(1)
    answering = _settings(model, ("refusal_rate", *NEXT_TOKEN), layers, max_new_tokens, batch_size, seed)
    with stage("answers", 1 + len(chosen)) as step:
        tables = measure_sweep(
            model, prompts.test, with_domains(acts, chosen, answering), answering, progress=lambda _: step(1)
        )
    rows = _of_sweep(join(list(tables.values())))
    last = settings.n_layers - 1
    own = capture(model, prompts.test, layers=[last], batch_size=batch_size)
    # Of the edited model, only the harmful class is read.
    moved = replace(prompts.test, harmless=prompts.test.harmless[:1])
    with stage("monitor", 1 + len(chosen)) as step:
        rows += _seen(own, own, {"method": "none", "k": None, "layer": None}, resamples, seed)
        for candidate in chosen:
            options: dict[str, Any] = {"edits": candidate.edits, "tokens": candidate.tokens}
            edited = capture(model, moved, layers=[last], batch_size=batch_size, **options)
            rows += _seen(edited, own, _keys(candidate), resamples, seed)
            rows += _costs(candidate, maps[candidate.method], seconds[candidate.method], acts)
            step(1)
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"k": "Int64", "layer": "Int64"})


def all_methods() -> list[str]:
    """Every registered method that is fitted to activations, and selective forms of the best known ones."""
    fitted = [name for name, known in METHODS.items() if known.fit is not None]
    return [*fitted, *(f"{name}_{form}" for name in SELECTIVE for form in ("null_space", "gated_threshold"))]


def _settings(
    model: Any,
    measures: Sequence[str],
    layers: str | Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> SweepSettings:
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "seed": seed}
    return sweep_settings(model, measures, layers=layers, **options)


def _at_best_layers(
    model: Any,
    prompts: ContrastSet,
    maps: Mapping[MethodSpec, Mapping[int, ActivationMap]],
    settings: SweepSettings,
) -> list[Candidate]:
    """Each method's edit of the layer with the lowest refusal score on the validation prompts."""
    planned = candidates(maps, settings, [SINGLE], prompts=("harmful",), generates=False)
    tables = measure_sweep(model, prompts.val, planned, settings)
    scores = measured(join(list(tables.values())), "refusal_score", "harmful").set_index("key")["value"]
    best: dict[MethodSpec, Candidate] = {}
    for candidate in planned:
        before = best.get(candidate.method)
        if before is None or scores[candidate.key] < scores[before.key]:
            best[candidate.method] = candidate
    return [
        replace(candidate, prompts=("harmful", "harmless"), generates=True) for candidate in best.values()
    ]


def _keys(candidate: Candidate) -> dict[str, Any]:
    layer = candidate.layers[0] if candidate.at_one_layer else None
    return {"method": candidate.method.name, "k": candidate.k, "layer": layer}


def _of_sweep(sweep: pd.DataFrame) -> list[dict[str, Any]]:
    rows = pd.concat([measured(sweep, name, label) for name, label in REPORTED])
    chosen: Any = rows.rename(columns={"measure": "quantity"})[list(COLUMNS)].to_dict("records")
    return list(chosen)


def _seen(
    edited: Activations, own: Activations, keys: Mapping[str, Any], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """How well a monitor that never saw an edit tells edited harmful prompts from harmless ones."""
    table = visibility(edited, own, permutations=0, bootstrap=resamples, seed=seed)
    (row,) = table[table["quantity"] == "mahalanobis_auc"].to_dict("records")
    ends = {name: row[name] for name in ("value", "low", "high", "n", "unit")}
    return [{**keys, "quantity": "monitor_auc", "prompts": "harmful", **ends}]


def _costs(
    candidate: Candidate, maps: Mapping[int, ActivationMap], seconds: float, acts: Activations
) -> list[dict[str, Any]]:
    """Processor time of a layer's fit, and of applying its map to one activation in float32."""
    edit = maps[candidate.layers[0]].to(torch.float32)
    own = acts.harmful(candidate.layers[0]).float()
    x = own.repeat(-(-TIMED // len(own)), 1)[:TIMED]
    edit.map(x)
    started = time.process_time()
    edit.map(x)
    each = (time.process_time() - started) / TIMED * 1e6
    values = (("fit", seconds, "seconds", acts.n_harmful), ("cost", each, "microseconds", TIMED))
    return [
        {**_keys(candidate), "quantity": name, "prompts": "", "value": value, "n": n, "unit": unit}
        for name, value, unit, n in values
    ]


def markdown(table: pd.DataFrame) -> str:
    """The comparison as a table in Markdown: one row per method, intervals in brackets."""
    shown = {
        "refusal_rate": ("refused", "share"),
        "coherent_success_rate": ("answered coherently", "share"),
        "kl": ("KL, harmless (nats)", "number"),
        "out_of_domain_share": ("out of domain", "share"),
        "monitor_auc": ("monitor's AUC", "number"),
        "fit": ("fit (ms a layer)", "ms"),
        "cost": ("cost (µs a token)", "bare"),
    }
    lines = [f"| method | layer | {' | '.join(title for title, _ in shown.values())} |"]
    lines.append("|" + "---|" * (2 + len(shown)))
    groups: Any = table.groupby(["method", "k", "layer"], dropna=False, sort=False)
    for (name, k, layer), rows in groups:
        by_quantity = {row["quantity"]: row for row in rows.to_dict("records")}
        cells = [
            _cell(by_quantity[quantity], kind) if quantity in by_quantity else ""
            for quantity, (_, kind) in shown.items()
        ]
        label = "unedited" if name == "none" else _label(name, k)
        lines.append(f"| {label} | {'' if pd.isna(layer) else layer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def in_words(table: pd.DataFrame) -> str:
    """Which method reaches most coherent answers, and which others its interval does not rule out."""
    reached = table[(table["quantity"] == "coherent_success_rate") & (table["method"] != "none")]
    if reached.empty:
        return "No method was measured with answers."
    best, *others = reached.sort_values("value", ascending=False, kind="stable").to_dict("records")
    names = [_label(row["method"], row["k"]) for row in others if row["high"] >= best["low"]]
    overlap = (
        f"the intervals of {', '.join(names)} overlap with it" if names else "no other interval overlaps"
    )
    return (
        f"{_label(best['method'], best['k'])} gets most harmful prompts answered coherently: "
        f"{_cell(best, 'share')} of {best['n']}; {overlap}."
    )


def _label(name: str, k: Any) -> str:
    label = method_named(name).label
    return label if pd.isna(k) else f"{label} ({k})"


def _cell(row: Mapping[Any, Any], kind: str) -> str:
    if kind == "ms":
        return f"{1000 * row['value']:.0f}"
    if kind == "bare":
        return f"{row['value']:.1f}"
    if kind == "share":
        return f"{row['value']:.0%} ({100 * row['low']:.0f}-{100 * row['high']:.0f})"
    return f"{row['value']:.2f} ({row['low']:.2f}-{row['high']:.2f})"
