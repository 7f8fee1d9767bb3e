"""What each stage of a study will take, from a few seconds of its own work on the model itself."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch

from ot_lens import geometry
from ot_lens.activations import Activations, capture, restricted
from ot_lens.behaviour.capability import capability_items
from ot_lens.behaviour.panel import NEXT_TOKEN_MEASURES
from ot_lens.components.ablation import MODES
from ot_lens.directions.harm import count_edits
from ot_lens.errors import FitError, OutOfDomainWarning, PoorFitWarning
from ot_lens.execution import as_runner
from ot_lens.localization import Candidate, MethodSpec, as_methods, fit_sweep, measure_sweep, plan_sweep
from ot_lens.localization.defence import DEFENCES
from ot_lens.localization.plan import search_budget
from ot_lens.localization.search import sets_by_size
from ot_lens.localization.settings import SweepPlan, SweepSettings
from ot_lens.localization.variants import count_variants
from ot_lens.models import load_model
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.study.config import StudyConfig
from ot_lens.study.diagnostics import FEWEST_ALIKE, FEWEST_SEEN, MAKERS, MAX_ALIKE, MAX_EDITED
from ot_lens.study.folder import RunFolder
from ot_lens.study.likeness import components_of
from ot_lens.study.mechanisms import MAX_DEFENDED, MAX_TRANSLATED, RANDOM_HEADS, TRANSLATED_CONTROLS
from ot_lens.study.preparation import check_choices, import_extensions, prepare, sweep_plan
from ot_lens.study.subject import FEW_RESAMPLES, Study, spread
from ot_lens.study.sweeping import Maps, capture_options, read_prompts
from ot_lens.tables import ALL, INDEPENDENT, SEQUENTIAL, SINGLE

# Prompts of each class in the first round. Two rounds at least tell what is fixed from what grows with the
# prompts; rounds grow until one takes `SECONDS`, and there is only one if it takes `MOST`.
FIRST, GROWTH, SECONDS, MOST = 12, 4, 3.0, 20.0
# Candidates that are measured with answers, and, in excess of the fewest, at the next token.
ANSWERED, READ, FEWEST_READ = 12, 16, 4
# Resamples for the geometry of two layers; tables whose resamples are capped, and others that take time.
RESAMPLES = 39
CAPPED = ("massive", "layer_angles", "layer_similarity", "map_quality")
UNCAPPED = ("geometry", "spectra", "cosines")
# Localizers that run what follows each block once more: the block, its attention or its MLP left out, and (on
# half of the prompts) edits and interchange at all tokens.
ABLATED = 4.0
# Items of a task without a limit.
UNLIMITED = 1000
# Tokens of a short request in a chat template.
TOKENS = 40
# Stages of one process, however many share the others.
ALONE = ("loading the model", "maps", "controls", "unedited model", "filter by behaviour")
# A figure and its share of the report take this many times what the simplest one takes on paper.
FIGURE = 2.0
T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What a stage will take: how many of what, and the measured price of one, in seconds."""

    stage: str
    count: int
    unit: str
    price: float

    @property
    def seconds(self) -> float:
        """Of the whole stage."""
        return self.count * self.price

    def seconds_of(self, processes: int) -> float:
        """Of the whole stage if some processes share it evenly, which is the least that it takes."""
        return self.seconds if self.stage in ALONE else self.seconds / processes


def estimate_run(config: StudyConfig, *, allow_code: bool = False) -> list[Cost]:
    """What each stage of a study will take in this process, in seconds, before it starts; writes nothing.

    The model is loaded, and a sample of every stage is done with two growing numbers of prompts, for a few
    seconds; what a stage takes beyond a fixed amount is in proportion to prompts, edits and layers. The first
    edits of a sweep may cost more than the later ones, so that long sweeps end sooner.

    Args:
        config: The configuration.
        allow_code: Import the modules with your own code that the configuration names.

    Raises:
        OtLensError: If the configuration cannot be carried out.
    """
    import_extensions(config, allow_code=allow_code)
    check_choices(config)
    prompts, methods = read_prompts(config), as_methods(config.method_entries)
    loading, (model, settings) = _timed(lambda: _load(config, prompts))
    n, most = FIRST, max(len(group) for _, contrast in prompts.splits for _, group in contrast)
    samples: list[_Sample] = []
    first_prompts = Contrast(prompts.test.harmful[:2], prompts.test.harmless[:2])
    measure_sweep(model, first_prompts, [], settings)  # what is only done once is not measured
    with warnings.catch_warnings():
        for category in (OutOfDomainWarning, PoorFitWarning):
            warnings.simplefilter("ignore", category)
        while True:
            seconds, sample = _timed(partial(_sample, model, config, prompts, settings, methods, n))
            samples += [] if sample is None else [sample]
            limit = MOST if len(samples) < 2 else SECONDS
            if samples and (n >= most or seconds > limit):
                break
            n *= GROWTH
        whole = _extrapolated(*samples[-2:])
        costs = [*_of_training(model, prompts.train, settings, methods, config)]
        costs += [*_of_tasks(model, config, methods)]
        costs += [*_of_model(config, prompts, settings, methods, whole), *_of_tables(config, prompts, whole)]
    return [Cost("loading the model", 1, "model", loading), *(cost for cost in costs if cost.count)]


def _extrapolated(*samples: "_Sample") -> "_Sample":
    """What the last sample would take with all prompts."""
    first, last = samples[0], samples[-1]

    def whole(name: str) -> float:
        before, after = first.seconds[name], last.seconds[name]
        if first is last:
            return after / last.share
        slope = max(0.0, after - before) / (last.share - first.share)
        return after + slope * (1 - last.share)

    return replace(last, seconds={name: whole(name) for name in last.seconds})


def _load(config: StudyConfig, prompts: ContrastSet) -> tuple[Any, SweepSettings]:
    model = load_model(**config.loading())
    settings = prepare(model, config, prompts, Path()).settings
    return model, replace(settings, panel=replace(settings.panel, completions=None))


def _timed(function: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a function takes, and what it returns."""
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


@dataclass(frozen=True)
class _Sample:
    """Every stage done in part: what was made, and the seconds that it took."""

    acts: Activations
    maps: Maps
    answered: Sequence[Candidate]  # all that get answers, and all others
    read: Sequence[Candidate]
    share: float  # of the prompts of the study that were used
    # By what was done: capture of the training prompts, fit of all maps, plan, the unedited model; answer and
    # score of one candidate.
    seconds: Mapping[str, float]


def _sample(
    model: Any,
    config: StudyConfig,
    prompts: ContrastSet,
    settings: SweepSettings,
    methods: Sequence[MethodSpec],
    n: int,
) -> _Sample | None:
    """With n prompts of each class; None if they are too few to fit the maps."""
    train, val, test = (Contrast(c.harmful[:n], c.harmless[:n]) for _, c in prompts.splits)
    few, runner = replace(prompts, train=train, val=val, test=test), as_runner(model)
    plan = replace(sweep_plan(config), search_size=0, fitting=(INDEPENDENT,))
    capturing, acts = _timed(lambda: capture(runner, few.train, **capture_options(config, settings.layers)))
    try:
        fitting, maps = _timed(lambda: _maps(acts, methods, settings, plan))
        planning, candidates = _timed(lambda: plan_sweep(runner, few, acts, methods, maps, settings, plan))
    except FitError:
        if n >= _count(prompts.train):
            raise
        return None
    answers = settings.panel.needs_answers
    answered = [candidate for candidate in candidates if answers and candidate.generates]
    read = [candidate for candidate in candidates if not (answers and candidate.generates)]

    def measured(some: Sequence[Candidate], settings: SweepSettings = settings) -> float:
        return _timed(lambda: measure_sweep(model, few.test, some, settings))[0]

    panel = replace(settings.panel, measures=NEXT_TOKEN_MEASURES, judge=None, text=None)
    reading = replace(settings, panel=panel)
    some, unedited = _evenly(answered, ANSWERED), measured([])
    many, fewest = (_evenly(candidates, count) for count in (READ, FEWEST_READ))
    score = measured(many, reading) - measured(fewest, reading)
    seconds = {
        "capture": capturing,
        "fit": fitting,
        "plan": planning,
        "unedited": unedited,
        "answer": max(0.0, measured(some) - unedited) / len(some) if some else 0.0,
        "score": max(0.0, score) / max(1, len(many) - len(fewest)),
    }
    share = _count(few.train, few.test) / _count(prompts.train, prompts.test)
    return _Sample(acts, maps, answered, read, share, seconds)


def _maps(acts: Activations, methods: Sequence[MethodSpec], settings: SweepSettings, plan: SweepPlan) -> Maps:
    """Fitted maps; in place of trained ones, which `_of_training` prices, maps of the same kind of edit."""
    fitted = fit_sweep(acts, [method for method in methods if not method.learned], settings, plan)
    stand_in = MethodSpec("directional_ablation")
    learned = [method for method in methods if method.learned]
    if learned:
        edits = fit_sweep(acts, [stand_in], settings, plan)[stand_in]
        fitted |= dict.fromkeys(learned, edits)
    return fitted


def _of_training(
    model: Any,
    prompts: Contrast,
    settings: SweepSettings,
    methods: Sequence[MethodSpec],
    config: StudyConfig,
) -> Iterator[Cost]:
    """The training of maps through the model, from one layer, or from a joint fit of two."""
    learned = [method for method in methods if method.learned]
    middle, ends = settings.layers[len(settings.layers) // 2], {settings.layers[0], settings.layers[-1]}
    for method in learned:
        # The passes of a joint fit go from its lowest layer to its highest, however many lie between.
        few = tuple(sorted(ends)) if method.joint else (middle,)
        acts = capture(model, prompts, **capture_options(config, few))
        some = replace(settings, layers=few)
        training = partial(fit_sweep, acts, [method], some, SweepPlan(), model=model, prompts=prompts)
        seconds, _ = _timed(training)
        count, unit = (1, "fits") if method.joint else (len(settings.layers), "layers")
        yield Cost(f"training {method.label}", count, unit, seconds)


def _of_tasks(model: Any, config: StudyConfig, methods: Sequence[MethodSpec]) -> Iterator[Cost]:
    """The tasks without an edit and under those of one and two layers, from one item of each."""
    if config.capability:
        seconds, _ = _timed(partial(capability_items, model, config.capability, limit=1))
        edits = 1 + len(methods) * (1 + (config.search_size > 1))
        yield Cost("capability", edits, "edits", seconds * (config.capability_limit or UNLIMITED))


def _evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of some items, evenly spaced."""
    return [items[index] for index in spread(tuple(range(len(items))), most)]


def _count(*contrasts: Contrast) -> int:
    return sum(len(group) for contrast in contrasts for _, group in contrast)


def _of_model(
    config: StudyConfig,
    prompts: ContrastSet,
    settings: SweepSettings,
    methods: Sequence[MethodSpec],
    sample: _Sample,
) -> Iterator[Cost]:
    """The stages that run the model, and the fits between them."""
    n_layers, train, test = len(settings.layers), _count(prompts.train), _count(prompts.test)
    placed = [method for method in sample.maps if not method.everywhere]
    candidates, plan = [*sample.answered, *sample.read], sweep_plan(config)
    later = SEQUENTIAL in plan.fitting and set(plan.sets) != {SINGLE} and n_layers > 1
    by_size = sets_by_size(n_layers, plan.search_size, plan.search) if plan.search_size else {}
    searching = [method for method in methods if not method.everywhere and not method.joint]
    budget = search_budget(candidates, prompts, len(methods), settings, plan)
    sets = len(searching) * min(sum(by_size.values()), max(n_layers, budget))
    more = len(placed) * later + len(searching) * (len(by_size) if plan.search_each_size else bool(by_size))
    if config.filter != "off":
        yield Cost(
            "filter by behaviour",
            _count(prompts.train, prompts.val),
            "prompts",
            sample.seconds["unedited"] / test,
        )
    yield Cost("activations", train + test, "prompts", sample.seconds["capture"] / train)
    count = len(sample.maps) * n_layers
    yield Cost("maps", count, "maps", sample.seconds["fit"] / count)
    yield Cost("sequential maps", len(placed) * n_layers * later, "maps", sample.seconds["capture"] / 2)
    yield Cost("controls", 1, "", sample.seconds["plan"])
    yield Cost("search", sets, "sets", sample.seconds["score"] * len(prompts.val.harmful) / test)
    yield Cost("unedited model", 1, "", sample.seconds["unedited"])
    yield Cost("sweep, answers", len(sample.answered) + more, "edits", sample.seconds["answer"])
    yield Cost("sweep, next token", len(sample.read), "edits", sample.seconds["score"])
    if config.claims:
        tried = 1 + len(sample.answered) + more
        share = _count(prompts.val) / test
        yield Cost("choice on validation prompts", tried, "edits", share * sample.seconds["answer"])
        # Of each method one layer, a pair, and all layers in each fitting.
        chosen = len(methods) * (1 + (plan.search_size > 1) + len(plan.fitting) * (ALL in plan.sets))
        varied = count_variants([method.name for method in methods], chosen, config.variants)
        yield Cost("variants of the chosen edits", varied, "edits", sample.seconds["answer"])
    located = sum(min(config.localizers, len(group)) for _, group in prompts.test)
    # Each block is left out, and its parts, or replaced: half of the model follows it on average.
    passes = n_layers * (ABLATED + (config.base is not None)) / 2
    written = sum(min(config.contributions, len(group)) for _, group in prompts.test)
    # Without heads: once more to choose them, and as many last tokens as sets, in half of the model.
    readings = 1 + bool(config.ablated_heads) * (1 + len(MODES) * (1 + RANDOM_HEADS / 2 / TOKENS))
    yield Cost("contributions", written, "prompts", readings * sample.seconds["capture"] / train)
    yield Cost("localizers", located, "prompts", passes * sample.seconds["capture"] / train)
    # In each language a capture, and edits of three methods at some layers, with controls, in all languages.
    edits = 3 * min(n_layers, MAX_TRANSLATED) * (1 + TRANSLATED_CONTROLS)
    translated = len(config.languages) * (1 + edits * len(config.languages) / TOKENS)
    yield Cost("languages", round(translated * train), "prompts", sample.seconds["capture"] / train)
    if config.defence:
        # Alone and under the attack.
        defended = 1 + 2 * len(DEFENCES) * MAX_DEFENDED
        yield Cost("defence", defended, "edits", sample.seconds["answer"])
    edits = config.harm * count_edits(n_layers, len(methods))
    # The stream, the next token, and the next token after the question.
    yield Cost("harm apart from refusal", edits, "edits", 3 * sample.seconds["capture"] * test / train)
    patched = sum(min(config.interchange, len(group)) for _, group in prompts.test)
    # A partner and one for the null: 1 + 2 + ... + 12 tokens each, and half of the model above each layer.
    passes = settings.n_layers * 12 * 13 / 2 / TOKENS
    yield Cost("interchange", patched, "prompts", passes * sample.seconds["capture"] / train)


def _of_tables(config: StudyConfig, prompts: ContrastSet, sample: _Sample) -> Iterator[Cost]:
    """Geometry, figures and report, from some layers and resamples of as many prompts as the study has."""
    from ot_lens.plots.gallery import GALLERY, entry_named
    from ot_lens.plots.paper.painters import pictures

    layers = sample.acts.layers
    few = sorted({layers[len(layers) // 2], layers[-1]})
    read = restricted(sample.acts, few, config.position)
    acts = {split: _repeated(read, getattr(prompts, split)) for split in ("train", "test")}
    maps = {method: {layer: by_layer[layer] for layer in few} for method, by_layer in sample.maps.items()}
    bare = config.model_copy(update={"permutations": RESAMPLES, "bootstrap": RESAMPLES})
    study = Study(RunFolder(Path(), {}), acts, maps, bare, pd.DataFrame())
    draws = config.permutations + config.bootstrap
    capped = min(config.permutations, FEW_RESAMPLES) + min(config.bootstrap, FEW_RESAMPLES)
    seconds = 0.0
    for name in (*UNCAPPED, *CAPPED):
        seconds += _timed(partial(MAKERS[name], study))[0] * (capped if name in CAPPED else draws)
    yield Cost("geometry", len(layers), "layers", seconds / (2 * RESAMPLES) / len(few))
    test = acts["test"]
    if min(test.n_harmful, test.n_harmless) >= FEWEST_SEEN:
        seen, _ = _timed(lambda: geometry.visibility(test, test, **study.few_resamples))
        edits = 1 + len(study.compared) * min(len(layers), MAX_EDITED)
        captured = sample.seconds["capture"] / _count(prompts.train) * len(prompts.test.harmful)
        yield Cost("visibility", edits, "edits", captured + seen * capped / (2 * RESAMPLES))
    if min(test.n_harmful, test.n_harmless) >= FEWEST_ALIKE:
        comparisons = len(study.compared) + (config.base is not None)
        alike = partial(geometry.similarity, test, test, k=components_of(test), **study.few_resamples)
        compared = min(len(layers), MAX_ALIKE) / len(few)
        price = _timed(alike)[0] * capped / (2 * RESAMPLES) * compared
        captured = sample.seconds["capture"] / _count(prompts.train) * _count(prompts.test)
        yield Cost("similarity of models", comparisons, "comparisons", captured + price)
    shown = entry_named("w2_per_layer").describe(MAKERS["geometry"](study)["geometry"])
    draw = partial(pictures, shown, ("png", "pdf"), config.figure_style)
    drawing = min(_timed(draw)[0] for _ in range(2))
    yield Cost("figures and report", len(GALLERY), "figures", FIGURE * drawing)


def _repeated(acts: Activations, contrast: Contrast) -> Activations:
    """As many activations of each class as there are prompts, from fewer; noise keeps them apart."""
    generator, data = torch.Generator().manual_seed(0), {}
    for label, group in contrast:
        known = acts.data[label].double()
        values = known[:, torch.arange(len(group)) % known.shape[1]]
        noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        data[label] = values + 0.1 * known.std(dim=1, keepdim=True, correction=0) * noise
    return replace(acts, data=data)
