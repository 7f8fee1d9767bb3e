"""`localize`: from prompts and method names to the table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from ot_lens.activations import Activations, capture, resolve_layers
from ot_lens.behaviour import (
    MEASURES,
    LazyJudge,
    PanelSettings,
    model_phrases,
    phrase_list,
    refusal_token_ids,
)
from ot_lens.errors import HookError, one_of
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.localization.methods import Method, as_methods
from ot_lens.localization.plan import SweepPlan, plan_sweep
from ot_lens.localization.sweep import sweep
from ot_lens.localization.units import ENGINES
from ot_lens.models import backend
from ot_lens.prompts import ContrastSet
from ot_lens.tables import UNEDITED, join


def localize(
    model: Any,
    prompts: ContrastSet,
    methods: Sequence[str | Mapping[str, Any] | Method] = ("pca_ot", "directional_ablation"),
    layers: str | Sequence[int] = "all",
    tokens: str = "all",
    *,
    hook: str = "resid_pre",
    position: int = -1,
    sets: Sequence[str] = ("single", "all"),
    engine: str = "auto",
    measures: Sequence[str] = MEASURES,
    k: Sequence[int] | None = None,
    strength: float | Sequence[float] = 1.0,
    fitting: Sequence[str] = ("independent",),
    controls: Sequence[str] = (),
    control_draws: int = 5,
    sufficiency: bool = False,
    search_size: int = 0,
    search: str = "beam",
    layer_sets: Sequence[Sequence[int]] = (),
    phrases: str | Sequence[str] | None = None,
    refusal_tokens: Sequence[str | int] | None = None,
    judge: str | Mapping[str, Any] | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    seed: int = 0,
    acts: Activations | None = None,
    progress: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Fit every method at every layer on the training prompts and measure each edit on the test prompts.

    Args:
        model: A hooked model.
        prompts: `train` fits the maps, `val` chooses a searched set, `test` measures.
        methods: Names, {"name": ..., parameters}, or `Method` objects.
        layers: "all" or layer numbers.
        tokens: Token scope of the edits: "all", "prompt", "last" or "generated".
        hook: Hook point where maps are fitted and applied.
        position: Token position the maps are fitted on, counted from the prompt's end.
        sets: "single" (each layer alone), "pair" (every two, at the next token only), "all" (together).
        engine: "single_pass", "hooks" or "auto"; see `ot_lens.localization.sweep`. With only "refusal_score"
            and "kl" measured, the single pass does the sweep at the price of a few forward passes.
        measures: Among "refusal_rate" (with it comes "attack_success_rate"), "exact_answer_rate",
            "refusal_score" (with it comes "refusal_score_shift"), "kl" and "perplexity".
        k: Ranks to try for "pca_ot" given by name alone.
        strength: T_t(x) = x + t (T(x) - x), t in [0, 1]; several make it an axis of the sweep.
        fitting: "independent" and, for several layers together, "sequential".
        controls: "random_subspace", "permuted_labels"; in the same table, read at the next token only.
        control_draws: Draws of each control.
        sufficiency: Also transport harmless onto harmful; those rows have transport "harmless_to_harmful".
        search_size: Most layers of a searched set; 0 for no search. Its rows hold "choice_price" too: its
            test score less the validation score that it was chosen by.
        search: "beam" or "greedy".
        layer_sets: Sets of layers to measure beside those of `sets`, with answers: pairs, say.
        phrases: Refusal phrases; default: those the model's folder declares, else Arditi's twelve.
        refusal_tokens: Tokens that begin a refusal; default as in `refusal_token_ids`.
        judge: A judge of the answers to harmful prompts, as `LazyJudge` takes it: "harmbench", say.
        max_new_tokens: Token budget of an answer.
        batch_size: Prompts a batch.
        seed: Seed of intervals, tests and controls.
        acts: Activations of `prompts.train`, when they were captured already.
        progress: Called with the key of each candidate just measured.

    Returns:
        One row per measured quantity: key (of the edit), set, layers, layer, method, k, strength, tokens,
        hook, transport, control, draw, fitting, measure, prompts, value, low, high (95 %), n, unit, interval,
        p_value and p_holm (paired test against the unedited model; Holm over layers), test, seed, engine,
        note. Rows of set "none" are the unedited model.

    Raises:
        FitError: If a method is unknown or cannot be fitted.
        HookError: If a layer, hook point, scope, set, control or engine does not exist or cannot serve.
        PromptError: If prompts cannot be rendered.
    """
    specs = _with_ranks(as_methods(methods), k)
    strengths = (strength,) if isinstance(strength, int | float) else tuple(strength)
    plan = SweepPlan(
        tuple(sets),
        strengths,
        tuple(fitting),
        tuple(controls),
        control_draws,
        sufficiency,
        search_size,
        search,
        layer_sets=tuple(map(tuple, layer_sets)),
    )
    one_of("token scope", tokens, TOKEN_SCOPES, HookError)
    one_of("engine", engine, ENGINES, HookError)
    chosen = resolve_layers(layers, backend(model).n_layers)
    settings = panel_settings(
        model,
        measures,
        phrases,
        refusal_tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        judge=None if judge is None else LazyJudge(judge),
    )
    if acts is None:
        acts = capture(
            model, prompts.train, layers=chosen, hook=hook, positions=[position], batch_size=batch_size
        )
    found, _ = plan_sweep(
        model, prompts, acts, specs, chosen, settings, plan, position=position, hook=hook, tokens=tokens
    )
    tables = {}
    for key, table in sweep(model, prompts.test, found, settings, tokens=tokens, hook=hook, engine=engine):
        tables[key] = table
        if progress is not None:
            progress(key)
    return join([tables[key] for key in (UNEDITED, *(candidate.key for candidate in found))])


def panel_settings(
    model: Any,
    measures: Sequence[str],
    phrases: str | Sequence[str] | None = None,
    refusal_tokens: Sequence[str | int] | None = None,
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    seed: int = 0,
    **others: Any,
) -> PanelSettings:
    """Settings of the panel, with the model's own phrases and refusal tokens where none are given.

    Args:
        model: A hooked model.
        measures: What is measured.
        phrases: Phrases of a refusal.
        refusal_tokens: Tokens that begin one.
        max_new_tokens: Token budget of an answer.
        batch_size: Prompts a batch.
        seed: Seed of intervals.
        others: Further fields of `PanelSettings`.
    """
    return PanelSettings(
        measures=tuple(measures),
        phrases=model_phrases(model) if phrases is None else phrase_list(phrases),
        refusal_tokens=refusal_token_ids(model, refusal_tokens),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        **others,
    )


def _with_ranks(methods: Sequence[Method], k: Sequence[int] | None) -> list[Method]:
    if k is None:
        return list(methods)
    ranked = []
    for method in methods:
        open_rank = method.name == "pca_ot" and "k" not in method.params
        ranked += [Method(method.name, {"k": rank, **method.params}) for rank in k] if open_rank else [method]
    return ranked
