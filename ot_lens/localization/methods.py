"""Methods of a sweep by name and parameters, and their maps.

Each layer is fitted by itself or from the bottom up, or trained through the model.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from ot_lens.activations import Activations, capture, restricted
from ot_lens.errors import FitError, HookError, OtLensTypeError
from ot_lens.execution import Runner, as_runner
from ot_lens.prompts import Contrast
from ot_lens.transport import ActivationMap, fit_all, method_named, resolved

# Parameter of methods with one direction for all layers, wherever it was fitted.
DIRECTION = "direction_index"


@dataclass(frozen=True)
class MethodSpec:
    """A method of the sweep: the name of a fit and its parameters.

    Attributes:
        name: A built-in or registered method (see `ot_lens.register_method`).
        params: Keyword arguments of its fit, such as {"k": 4}.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        """Hash by label: a mapping of parameters has none of its own."""
        return hash(self.label)

    @property
    def label(self) -> str:
        """Name and parameters, for people."""
        inside = ", ".join(f"{key} = {value}" for key, value in sorted(self.params.items()))
        return f"{self.name} ({inside})" if inside else self.name

    @property
    def everywhere(self) -> bool:
        """Whether the map of one layer edits every block."""
        return method_named(self.name).everywhere

    @property
    def has_sets(self) -> bool:
        """Whether it has a form for all layers together, in which several maps take part."""
        one = self.everywhere and method_named(self.name).place is None
        return not one and DIRECTION not in self.params

    def single_layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """The layers whose maps are edits by themselves: all, or the one that a direction index names."""
        index = self.params.get(DIRECTION)
        if index is None or math.floor(index) not in layers:
            return tuple(layers)
        return (math.floor(index),)

    @property
    def learned(self) -> bool:
        """Whether it is trained through the model, not fitted to activations."""
        return method_named(self.name).learn is not None

    @property
    def reads_refusal(self) -> bool:
        """Whether its training takes refusal tokens, and its parameters do not name any."""
        learn = method_named(self.name).learn
        names = () if learn is None else signature(learn).parameters
        return "refusal_tokens" in names and "refusal_tokens" not in self.params

    @property
    def joint(self) -> bool:
        """Whether its maps are one fit of all layers, so that none of them says anything by itself."""
        return method_named(self.name).joint

    @property
    def sequential(self) -> bool:
        """Whether its layers can be fitted from the bottom up, each on what the edits below it left."""
        return not self.everywhere and not self.learned

    def k(self, fitted: Sequence[ActivationMap]) -> int | None:
        """Rank for the table: as asked for; where it was left to the fit, the one that all its maps share."""
        known = method_named(self.name)
        fit = known.fit or known.learn
        parameter = None if fit is None else signature(fit).parameters.get("k")
        if parameter is None:
            return None
        asked = self.params.get("k", parameter.default)
        used = {asked} if isinstance(asked, int) else {edit.info.k for edit in fitted}
        return used.pop() if len(used) == 1 else None


def as_methods(methods: Sequence[str | Mapping[str, Any] | MethodSpec]) -> list[MethodSpec]:
    """Methods from names, mappings {"name": ..., parameters} or `MethodSpec` objects."""
    if isinstance(methods, str):
        raise OtLensTypeError(f"methods must be a list: write [{methods!r}].")
    if not methods:
        raise FitError("methods is empty: name at least one.")
    return [_as_method({"name": item} if isinstance(item, str) else item) for item in methods]


def _as_method(item: Mapping[str, Any] | MethodSpec) -> MethodSpec:
    if isinstance(item, Mapping):
        params = dict(item)
        item = MethodSpec(str(params.pop("name", "")), params)
    known, params = resolved(item.name, item.params)
    return MethodSpec(known.name, params)


def fit_maps(
    acts: Activations,
    methods: Sequence[MethodSpec],
    *,
    layers: Sequence[int],
    position: int,
    model: Any = None,
    prompts: Contrast | None = None,
    batch_size: int = 64,
    seed: int = 0,
    refusal_tokens: Sequence[int] | None = None,
    progress: Callable[[int], None] = lambda _done: None,
) -> dict[MethodSpec, dict[int, ActivationMap]]:
    """Every method's map at every layer, each layer fitted on the unedited stream.

    Methods that are trained need the model, or a `Runner`, and the prompts that `acts` are of; layers in the
    runner's cache are not trained again. `progress` is called for each fit, and for each trained layer.
    """
    missing = [layer for layer in layers if layer not in acts.layers]
    if missing:
        raise HookError(f"layer {missing[0]} was not captured: capture it, or leave it out of layers.")
    fitted: dict[tuple[object, ...], dict[int, ActivationMap]] = {}
    maps: dict[MethodSpec, dict[int, ActivationMap]] = {}
    for method in methods:
        if method.learned:
            runner, training = _trainer(model, prompts, method)
            settings = {"position": position, "hook": acts.hook, "batch_size": batch_size, "seed": seed}
            if method.reads_refusal and refusal_tokens is not None:
                settings["refusal_tokens"] = refusal_tokens
            samples = restricted(acts, layers, position)
            trained = _trained(runner, training, samples, method, settings, progress)
            maps[method] = {layer: trained[layer] for layer in layers}
            continue
        # Methods with the same batched fit, such as directional ablation and RFA, share its maps.
        known = method_named(method.name)
        key = (known.batch or known.name, known.modifiers, repr(sorted(method.params.items())))
        if key not in fitted:
            fitted[key] = fit_all(acts, method.name, position=position, **method.params)
        maps[method] = {layer: fitted[key][layer] for layer in layers}
        progress(1)
    return maps


def _trainer(model: Any, prompts: Contrast | None, method: MethodSpec) -> tuple[Runner, Contrast]:
    if model is None or prompts is None:
        raise FitError(
            f"Method {method.name!r} is trained through the model, and there is none here: pass model and "
            "prompts, or use localize."
        )
    return as_runner(model), prompts


def _trained(
    runner: Runner,
    prompts: Contrast,
    acts: Activations,
    method: MethodSpec,
    settings: Mapping[str, Any],
    progress: Callable[[int], None],
) -> dict[int, ActivationMap]:
    """The maps of a method that is trained through the model; layers in the cache are not trained again."""
    names = {layer: f"learned|{method.label}|{layer}" for layer in acts.layers}
    missing = [layer for layer, name in names.items() if name not in runner.cache]
    joint = method_named(method.name).joint and missing
    groups = [acts.layers] if joint else [(layer,) for layer in missing]
    progress(0 if joint else len(names) - len(missing))
    tasks = [restricted(acts, group, settings["position"]) for group in groups]
    for layer, trained in runner.stream(_train, tasks, prompts, method, settings):
        runner.cache[names[layer]] = trained
        progress(1)
    return {layer: runner.cache[name] for layer, name in names.items()}


def _train(
    model: Any,
    prompts: Contrast,
    method: MethodSpec,
    settings: Mapping[str, Any],
    tasks: Sequence[Activations],
) -> Iterator[tuple[int, ActivationMap]]:
    """The trained map of each layer of some tasks, which are activations of the layers to train together."""
    learn = method_named(method.name).learn
    for acts in tasks:
        made = learn(  # type: ignore[misc]  # only methods that have it get here
            model, prompts, acts, layers=acts.layers, progress=lambda _done: None, **settings, **method.params
        )
        for layer in acts.layers:
            yield layer, _labelled(made.get(layer), layer, method, acts, settings)


def _labelled(
    trained: object, layer: int, method: MethodSpec, acts: Activations, settings: Mapping[str, Any]
) -> ActivationMap:
    """A trained map with where it came from."""
    if not isinstance(trained, ActivationMap):
        kind = type(trained).__name__
        raise FitError(f"Method {method.name!r} returned a {kind} for layer {layer}: return an AffineMap.")
    return trained.labelled(
        method=method.name,
        layer=layer,
        position=settings["position"],
        hook=acts.hook,
        n_harmful=acts.n_harmful,
        n_harmless=acts.n_harmless,
        seed=settings["seed"],
    )


def fit_sequentially(
    model: Any,
    prompts: Contrast,
    methods: Sequence[MethodSpec],
    *,
    layers: Sequence[int],
    position: int = -1,
    hook: str = "resid_pre",
    tokens: str = "all",
    batch_size: int = 64,
    acts: Activations | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[MethodSpec, dict[int, ActivationMap]]:
    """Fit layer by layer from the bottom, each layer with the edits below it active.

    The harmless activations of every fit are unedited: the target is the model's own harmless distribution.

    Args:
        model: A hooked model, or a `Runner`, whose tasks are one layer of one method.
        prompts: Training split.
        methods: Methods; "rfa" and those trained through the model have no sequential form and are left out.
        layers: The layers to edit together.
        position: Token position of the fit.
        hook: Hook point of the edits.
        tokens: Token scope of the edits.
        batch_size: Prompts per batch.
        acts: Unedited activations of `prompts`, if they were captured already.
        progress: Called with the number of maps just fitted.

    Returns:
        The map of every method at every layer.

    Raises:
        FitError: If a fit fails.
        HookError: If a layer or scope does not exist.
    """
    runner, report = as_runner(model), progress or (lambda _done: None)
    options: dict[str, Any] = {"hook": hook, "positions": [position], "batch_size": batch_size}
    if acts is None:
        acts = capture(runner, prompts, layers=layers, **options)
    maps: dict[MethodSpec, dict[int, ActivationMap]] = {method: {} for method in methods if method.sequential}
    for layer in sorted(layers):
        tasks = {f"sequential|{m.label}|{layer}": (m, dict(below)) for m, below in maps.items()}
        target = acts.harmless(layer, position)[None, :, None]
        fitted = runner.map(
            _fit_above,
            tasks,
            prompts,
            target,
            layer,
            {**options, "tokens": tokens},
            progress=lambda _name: report(1),
        )
        for name, (method, _) in tasks.items():
            maps[method][layer] = fitted[name]
    return maps


def _fit_above(
    model: Any,
    prompts: Contrast,
    target: Float64[Tensor, "1 n 1 d"],
    layer: int,
    options: Mapping[str, Any],
    task: tuple[MethodSpec, Mapping[int, ActivationMap]],
) -> ActivationMap:
    """A method's map at a layer, fitted on activations that its maps below have moved."""
    method, below = task
    moved = capture(model, prompts, layers=[layer], edits=below, **options)
    data = {"harmful": moved.data["harmful"], "harmless": target}
    (position,) = options["positions"]
    return fit_all(replace(moved, data=data), method.name, position=position, **method.params)[layer]
