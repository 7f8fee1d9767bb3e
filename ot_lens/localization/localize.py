"""`localize`: from prompts and method names to the table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from ot_lens.activations import Activations, capture
from ot_lens.behaviour import LazyJudge
from ot_lens.behaviour.panel import MEASURES
from ot_lens.execution import as_runner
from ot_lens.localization.measure import measure_sweep
from ot_lens.localization.methods import MethodSpec, as_methods
from ot_lens.localization.plan import fit_sweep, plan_sweep
from ot_lens.localization.settings import SweepPlan, sweep_settings
from ot_lens.prompts import ContrastSet
from ot_lens.tables import join


def localize(
    model: Any,
    prompts: ContrastSet,
    methods: Sequence[str | Mapping[str, Any] | MethodSpec] = ("pca_ot", "directional_ablation"),
    layers: str | Sequence[int] = "all",
    tokens: str = "auto",
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
    search_budget: int | None = None,
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
        model: A hooked model, or a `Runner` (see `ot_lens.execution`).
        prompts: `train` fits or trains the maps, `val` chooses a searched set, `test` measures.
        methods: Names, {"name": ..., parameters}, or `MethodSpec` objects; the parameters may ask for
            modifiers, such as {"within": "null_space"} (see `fit`).
        layers: "all" or layer numbers.
        tokens: Token scope of the edits: "all", "prompt", "last" or "generated"; "auto" is each method's own:
            projections act on all tokens, maps that move a distribution where they were fitted.
        hook: Hook point where maps are fitted and applied.
        position: Token position the maps are fitted on, counted from the prompt's end.
        sets: "single" (each layer alone), "pair" (every two, at the next token only), "all" (together).
        engine: "single_pass", "hooks" or "auto"; see `SweepSettings`. With "refusal_score" and "kl"
            alone, the single pass measures the whole sweep at the cost of a few forward passes.
        measures: Among "refusal_rate", "exact_answer_rate", "refusal_score" (with it comes
            "refusal_score_shift"), "kl" and "perplexity". With the refusal rate come "attack_success_rate",
            "coherent_success_rate", "degenerate_rate", "answer_nll" and "refusal_rate_within_8" (tokens), 16
            and so on. Each edit also has its "out_of_domain_share".
        k: Ranks of "pca_ot" where it is given by name alone.
        strength: T_t(x) = x + t (T(x) - x), t in [0, 1]; several make it an axis of the sweep.
        fitting: "independent" and, for several layers together, "sequential".
        controls: "random_subspace", "permuted_labels"; in the same table, measured at the next token only.
        control_draws: Random draws of each control.
        sufficiency: Also move harmless onto harmful; those rows have transport "harmless_to_harmful".
        search_size: Largest set of layers to search for; 0 for no search. Its rows hold "choice_price": its
            test score minus the validation score it was chosen by.
        search: "beam" or "greedy".
        search_budget: Sets that the search scores at most for each method, the most promising ones first, but
            never less than each layer alone. Default: as many as read as many prompts as the rest of the
            sweep. The rows of a search that this bound cuts say so.
        layer_sets: Further sets of layers to measure, with answers: pairs, for instance.
        phrases: Refusal phrases; default: those of the model's folder, else Arditi's twelve.
        refusal_tokens: Tokens that begin a refusal; default as in `refusal_token_ids`.
        judge: A judge of the answers to harmful prompts, as `LazyJudge` takes it, such as "harmbench".
        max_new_tokens: Token budget of an answer.
        batch_size: Prompts per batch.
        seed: Seed of intervals, tests and controls.
        acts: Activations of `prompts.train`, if they were captured already.
        progress: Called with the key of each candidate that is done.

    Returns:
        One row per measured quantity: key (of the edit), set, layers, layer, method, k, strength, tokens,
        hook, transport, control, draw, fitting, measure, prompts, value, low, high (95 %), n, unit, interval,
        p_value and p_holm (paired test against the unedited model; Holm over layers), test, seed, engine,
        verified (share of the answers' tokens that were verified, not generated), note. Rows of set "none"
        are the unedited model.

    Raises:
        FitError: If a method is unknown or cannot be fitted.
        HookError: If a layer, hook point, scope, set, control or engine does not exist or cannot serve.
        PromptError: If prompts cannot be rendered.
        ActivationError: If logits contain NaN.

    Warns:
        OutOfDomainWarning: If maps that move a distribution act where they were not fitted.
    """
    runner = as_runner(model)
    requested = [ranked for method in as_methods(methods) for ranked in _with_ranks(method, k)]
    plan = SweepPlan(
        tuple(sets),
        (strength,) if isinstance(strength, int | float) else tuple(strength),
        tuple(fitting),
        tuple(controls),
        control_draws,
        sufficiency,
        search_size,
        search,
        search_budget,
        layer_sets=tuple(map(tuple, layer_sets)),
    )
    settings = runner.call(
        sweep_settings,
        measures,
        layers=layers,
        position=position,
        tokens=tokens,
        hook=hook,
        engine=engine,
        phrases=phrases,
        refusal_tokens=refusal_tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        judge=None if judge is None else LazyJudge(judge),
    )
    if acts is None:
        options: dict[str, Any] = {"hook": hook, "positions": [position], "batch_size": batch_size}
        acts = capture(runner, prompts.train, layers=settings.layers, **options)
    maps = fit_sweep(acts, requested, settings, plan, model=runner, prompts=prompts.train)
    candidates = plan_sweep(runner, prompts, acts, requested, maps, settings, plan)
    return join(list(measure_sweep(runner, prompts.test, candidates, settings, progress=progress).values()))


def _with_ranks(method: MethodSpec, ranks: Sequence[int] | None) -> list[MethodSpec]:
    """The method with each rank, where it is "pca_ot" by name alone."""
    if ranks is None or method.name != "pca_ot" or "k" in method.params:
        return [method]
    return [MethodSpec(method.name, {"k": rank, **method.params}) for rank in ranks]
