"""Whether what was fitted in one language removes refusal in others."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ot_lens.activations import Activations, capture
from ot_lens.behaviour import refusal_score
from ot_lens.errors import PromptError, SinglePassError
from ot_lens.execution import Runner, as_runner
from ot_lens.geometry import run_cosines
from ot_lens.interventions import Edits, intervene
from ot_lens.localization.candidates import edits_at
from ot_lens.localization.controls import permuted
from ot_lens.localization.methods import MethodSpec, as_methods, fit_maps
from ot_lens.localization.settings import SweepSettings, sweep_settings
from ot_lens.localization.walking import next_token_readings
from ot_lens.progress import Stage, silent
from ot_lens.prompts import ContrastSet, Prompt
from ot_lens.single_pass import why_not
from ot_lens.statistics.estimates import Estimate, mean, ratio
from ot_lens.tables import UNEDITED
from ot_lens.transport import ActivationMap

METHODS: tuple[str | Mapping[str, Any], ...] = (
    "directional_ablation",
    "mean_shift",
    {"name": "pca_ot", "k": 2},
)
COLUMNS = (
    "fitted_in", "measured_in", "method", "k", "layer", "quantity", "value", "n", "low", "high", "null_mean",
    "null_low", "null_high", "unit",
)  # fmt: skip
NO_NULL = dict.fromkeys(("null_mean", "null_low", "null_high"), float("nan"))
# Of every method and layer: an edit, or one fitted to permuted labels.
Scores = Mapping[tuple[MethodSpec, int], Float64[Tensor, " prompt"]]


def across_languages(
    model: Any,
    prompts: Mapping[str, ContrastSet],
    methods: Sequence[str | Mapping[str, Any] | MethodSpec] = METHODS,
    *,
    layers: str | Sequence[int] = "all",
    refusal_tokens: Sequence[str | int] | None = None,
    control_draws: int = 4,
    permutations: int = 200,
    bootstrap: int = 200,
    batch_size: int = 64,
    seed: int = 0,
    stage: Stage = silent,
) -> pd.DataFrame:
    """Fit maps in each language and measure them in every language, at the next token.

    Quantities, of harmful prompts of the language in which an edit is measured:

    - "refusal_score", the mean; of method "none" without an edit;
    - "effect", how much lower it is than without the edit; its null is the range of edits that were fitted in
      the same language to permuted labels;
    - "share", of the effect that the same method has at the same layer when fitted in the language itself,
      which is 1 there; NaN where that effect is not above zero beyond its interval;
    - "cosine" (method "none") of the refusal directions of two languages; its null permutes labels.

    The languages need not hold translations of the same prompts.

    Args:
        model: A hooked model, or a `Runner`.
        prompts: A contrast set by the name of its language, at least two: `train` fits, `test` measures.
        methods: Methods as `localize` takes them.
        layers: "all" or layer numbers, each edited by itself.
        refusal_tokens: Tokens that begin a refusal in any of the languages; default as in
            `refusal_token_ids`. Name those of every language for a model that refuses in the language of the
            request.
        control_draws: Fits to permuted labels, of which the null of an effect consists; 0 for none.
        permutations: Relabellings in the null of a cosine; 0 for none.
        bootstrap: Resamples in the interval of a cosine; 0 for none.
        batch_size: Prompts per batch.
        seed: Seed of intervals and permutations.
        stage: Shows progress; see `ot_lens.progress`.

    Returns:
        Columns fitted_in, measured_in, method, k, layer, quantity, value, n, low, high (95 %), null_mean,
        null_low, null_high, unit.

    Raises:
        PromptError: If there are fewer than two languages, or prompts cannot be rendered.
        FitError: If a method is unknown or cannot be fitted.
        HookError: If a layer does not exist.
        ActivationError: If logits contain NaN.

    Source: the question is that of Wang et al. 2025, arXiv 2505.17306, who edit in English and measure in
    others.
    """
    if len(prompts) < 2:
        raise PromptError(f"Languages are compared with each other: give at least two, got {list(prompts)}.")
    runner, specs = as_runner(model), as_methods(methods)
    options: dict[str, Any] = {"refusal_tokens": refusal_tokens, "batch_size": batch_size, "seed": seed}
    settings = runner.call(sweep_settings, ("refusal_score",), layers=layers, **options)
    acts = {
        name: capture(runner, own.train, layers=settings.layers, batch_size=batch_size)
        for name, own in prompts.items()
    }
    compared = _Languages(runner, prompts, acts, specs, settings, control_draws)
    rows = [*compared.rows(stage), *_cosines(acts, permutations, bootstrap, seed)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"k": "Int64", "layer": "Int64"})


@dataclass(frozen=True)
class _Languages:
    """What is fitted in every language, and measured in all."""

    runner: Runner
    prompts: Mapping[str, ContrastSet]
    acts: Mapping[str, Activations]
    methods: Sequence[MethodSpec]
    settings: SweepSettings
    control_draws: int

    def rows(self, stage: Stage) -> Iterator[dict[str, Any]]:
        """Scores, effects and shares of every pair of languages."""
        with stage("languages", len(self.prompts) * (1 + self.control_draws)) as step:
            fitted = {name: self._maps(name, acts) for name, acts in self.acts.items()}
            scores: dict[str, Mapping[str, Scores]] = {}
            before: Mapping[str, Tensor] = {}
            for name, maps in fitted.items():
                scores[name], before = self._scored(maps)
                step(1)
            controls: dict[str, list[Mapping[str, Scores]]] = {name: [] for name in self.prompts}
            for draw in range(self.control_draws):
                for name, acts in self.acts.items():
                    mixed = permuted(acts, seed=self.settings.panel.seed * 1009 + draw)
                    controls[name].append(self._scored(self._maps(name, mixed))[0])
                    step(1)
        for language, plain in before.items():
            keys = {"fitted_in": "", "measured_in": language, "method": UNEDITED}
            yield _row(keys, "refusal_score", self._mean(plain), "nats")
            for name, maps in fitted.items():
                drawn = [draw[language] for draw in controls[name]]
                by_edit = scores[name][language], scores[language][language], drawn
                for key, edit in maps.items():
                    place = {"fitted_in": name, "measured_in": language, **_named(key, edit)}
                    yield from self._edit_rows(place, key, plain, by_edit)

    def _edit_rows(
        self,
        place: Mapping[str, Any],
        key: tuple[MethodSpec, int],
        plain: Float64[Tensor, " prompt"],
        by_edit: tuple[Scores, Scores, Sequence[Scores]],
    ) -> Iterator[dict[str, Any]]:
        edited, own, drawn = by_edit
        effect, best = (plain - scores[key] for scores in (edited, own))
        null = torch.stack([(plain - scores[key]).mean() for scores in drawn]) if drawn else plain[:0]
        yield _row(place, "refusal_score", self._mean(edited[key]), "nats")
        yield _row(place, "effect", self._mean(effect), "nats", _range(null))
        share = ratio(effect.numpy(), best.numpy(), seed=self.settings.panel.seed)
        yield _row(place, "share", share, "share")

    def _maps(self, name: str, acts: Activations) -> dict[tuple[MethodSpec, int], ActivationMap]:
        train, settings = self.prompts[name].train, self.settings
        sites: dict[str, Any] = {"layers": settings.layers, "position": settings.position}
        seed = settings.panel.seed
        maps = fit_maps(acts, self.methods, model=self.runner, prompts=train, seed=seed, **sites)
        return {(method, layer): edit for method, by in maps.items() for layer, edit in by.items()}

    def _scored(
        self, maps: Mapping[tuple[MethodSpec, int], ActivationMap]
    ) -> tuple[dict[str, Scores], dict[str, Float64[Tensor, " prompt"]]]:
        """Refusal scores of the harmful test prompts of each language, under every map and without any."""
        scores: dict[str, dict[tuple[MethodSpec, int], Tensor]] = {name: {} for name in self.prompts}
        plain: dict[str, Tensor] = {}
        for method in self.methods:
            keys = [key for key in maps if key[0] == method]
            edits = [
                edits_at(method, {layer: maps[method, layer]}, [layer], self.settings.n_layers)
                for _, layer in keys
            ]
            for name, own in self.prompts.items():
                read = self.runner.call(_scores, own.test.harmful, edits, method.name, self.settings)
                plain[name] = read[-1]
                scores[name] |= dict(zip(keys, read, strict=False))
        return dict(scores), plain

    def _mean(self, values: Float64[Tensor, " prompt"]) -> Estimate:
        return mean(values.numpy(), seed=self.settings.panel.seed)


def _scores(
    model: Any, prompts: Sequence[Prompt], edits: Sequence[Edits], method: str, settings: SweepSettings
) -> Float64[Tensor, "edit prompt"]:
    """Under each edit and, last, without any; in one walk if the model can be walked."""
    scope, everything = settings.scope(method), [*edits, {}]
    if all(why_not(model, edit, settings.hook) is None for edit in edits):
        with suppress(SinglePassError):
            return next_token_readings(model, prompts, everything, settings, scope)[0][..., 0]
    panel, scores = settings.panel, []
    for edit in everything:
        with intervene(model, edit, tokens=scope, hook=settings.hook):
            scores.append(
                refusal_score(model, prompts, tokens=panel.refusal_tokens, batch_size=panel.batch_size)
            )
    return torch.stack(scores)


def _named(key: tuple[MethodSpec, int], edit: ActivationMap) -> dict[str, Any]:
    method, layer = key
    return {"method": method.name, "k": method.k([edit]), "layer": layer}


def _row(
    place: Mapping[str, Any],
    quantity: str,
    estimate: Estimate,
    unit: str,
    null: Mapping[str, float] = NO_NULL,
) -> dict[str, Any]:
    known = {"value": estimate.value, "n": estimate.n, "low": estimate.low, "high": estimate.high}
    return {**place, "quantity": quantity, **known, **null, "unit": unit}


def _range(null: Float64[Tensor, " draw"]) -> dict[str, float]:
    """Mean, least and largest of few draws."""
    if not len(null):
        return dict(NO_NULL)
    return {
        "null_mean": float(null.mean()),
        "null_low": float(null.min()),
        "null_high": float(null.max()),
    }


def _cosines(
    acts: Mapping[str, Activations], permutations: int, bootstrap: int, seed: int
) -> Iterator[dict[str, Any]]:
    draws = {"permutations": permutations, "bootstrap": bootstrap, "seed": seed}
    for one, other in combinations(acts, 2):
        table = run_cosines(acts[one], acts[other], **draws).rename(columns={"cosine": "value"})
        places = {"fitted_in": one, "measured_in": other, "method": UNEDITED, "quantity": "cosine"}
        rows: list[Any] = table.drop(columns="position").assign(**places, unit="cosine").to_dict("records")
        yield from rows
