"""What a sweep tries, and the candidates that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ot_lens.activations import Activations
from ot_lens.errors import HookError, one_of
from ot_lens.execution import as_runner
from ot_lens.localization.candidates import Candidate, Maps, candidates, listed
from ot_lens.localization.controls import CONTROLS, REFERENCES, controls, swapped
from ot_lens.localization.methods import MethodSpec, fit_maps
from ot_lens.localization.search import confirmations, search
from ot_lens.localization.sequential import fit_sequentially
from ot_lens.localization.settings import SweepSettings
from ot_lens.prompts import ContrastSet
from ot_lens.tables import ALL, INDEPENDENT, INDUCE, SEQUENTIAL, SETS, SINGLE
from ot_lens.transport import AffineMap, method_named

FITTINGS = (INDEPENDENT, SEQUENTIAL)
ANSWERS = ("all", "chosen")


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep tries, besides methods and layers.

    Attributes:
        sets: "single", "pair" and "all": each layer, every pair, all layers together.
        strengths: Strengths of the edits.
        fitting: "independent", and "sequential" for sets of more than one layer.
        controls: Kinds of control, "random_subspace" and "permuted_labels"; empty for none. With any control
            the mean shift and the diagonal map (Linear-AcT) are swept too, as references.
        control_draws: Random draws of each control, for every method and layer.
        sufficiency: Also move harmless activations onto the harmful ones, which should induce refusal.
        search_size: Largest set of layers to search for; 0 for no search.
        search: "beam" or "greedy".
        search_each_size: Report the best set of every size up to `search_size` instead of the best overall,
            and the best single direction of "rfa".
        layer_sets: Further sets of layers to measure.
        answers: "all": generate answers under every edit except pairs and controls; "chosen": only under sets
            that were searched for or listed.
    """

    sets: tuple[str, ...] = ("single", "all")
    strengths: tuple[float, ...] = (1.0,)
    fitting: tuple[str, ...] = ("independent",)
    controls: tuple[str, ...] = ()
    control_draws: int = 5
    sufficiency: bool = False
    search_size: int = 0
    search: str = "beam"
    search_each_size: bool = False
    layer_sets: tuple[tuple[int, ...], ...] = ()
    answers: str = "all"

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            HookError: If one is unknown or out of range.
        """
        for what, values, allowed in (
            ("layer set", self.sets, SETS),
            ("control", self.controls, CONTROLS),
            ("fitting", self.fitting, FITTINGS),
            ("choice of answers", (self.answers,), ANSWERS),
        ):
            for value in values:
                one_of(what, value, allowed, HookError)
        if not self.strengths or not all(0 <= t <= 1 for t in self.strengths):
            raise HookError(f"strengths must be at least one number in [0, 1], got {list(self.strengths)}.")


def fit_sweep(
    acts: Activations, methods: Sequence[MethodSpec], settings: SweepSettings, plan: SweepPlan
) -> dict[MethodSpec, dict[int, AffineMap]]:
    """The map of every method at every layer, including the references that come with controls.

    Raises:
        FitError: If a fit fails.
        HookError: If a layer was not captured.
    """
    references = [m for m in REFERENCES if plan.controls and m not in methods]
    return fit_maps(acts, [*methods, *references], layers=settings.layers, position=settings.position)


def plan_sweep(
    model: Any,
    prompts: ContrastSet,
    acts: Activations,
    methods: Sequence[MethodSpec],
    maps: Maps,
    settings: SweepSettings,
    plan: SweepPlan,
) -> list[Candidate]:
    """All candidates of a plan, in the order of the table.

    Args:
        model: A hooked model, or a `Runner`; sequential fits and the search need it.
        prompts: All splits.
        acts: Activations of the training prompts.
        methods: The requested methods; references of controls are neither searched nor listed.
        maps: What `fit_sweep` fitted.
        settings: How candidates are fitted and measured.
        plan: What is tried.

    Raises:
        FitError: If a fit fails.
        HookError: If a choice of the plan is out of range.
    """
    runner, n_layers, layers = as_runner(model), settings.n_layers, settings.layers
    generates = plan.answers == "all"
    found = candidates(maps, n_layers, plan.sets, plan.strengths, generates=generates)
    if SEQUENTIAL in plan.fitting and set(plan.sets) - {SINGLE} and len(layers) > 1:
        later = fit_sequentially(
            runner,
            prompts.train,
            list(maps),
            layers=layers,
            position=settings.position,
            hook=settings.hook,
            tokens=settings.tokens,
            batch_size=settings.panel.batch_size,
            acts=acts,
        )
        # In a pair, the later map is fitted under the earlier one alone: these maps fit all layers only.
        found += candidates(later, n_layers, [ALL], plan.strengths, fitting=SEQUENTIAL, generates=generates)
    if plan.sufficiency:
        reversible = [m for m in maps if method_named(m.name).reversible]
        back = fit_maps(swapped(acts), reversible, layers=layers, position=settings.position)
        found += candidates(back, n_layers, [SINGLE], plan.strengths, transport=INDUCE, generates=generates)
    requested = {method: maps[method] for method in methods}
    found += listed(requested, n_layers, plan.layer_sets, plan.strengths)
    if plan.search_size:
        best = search(
            runner,
            prompts.val.harmful,
            requested,
            settings,
            size=plan.search_size,
            kind=plan.search,
            each_size=plan.search_each_size,
        )
        found += confirmations(best, requested, n_layers)
    if plan.controls:
        found += controls(
            acts,
            maps,
            n_layers,
            position=settings.position,
            kinds=plan.controls,
            draws=plan.control_draws,
            strength=max(plan.strengths),
            both_ways=plan.sufficiency,
            seed=settings.panel.seed,
        )
    return found
