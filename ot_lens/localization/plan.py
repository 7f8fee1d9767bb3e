"""What a sweep tries, and the candidates and maps that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ot_lens.activations import Activations
from ot_lens.behaviour import PanelSettings
from ot_lens.errors import HookError, one_of
from ot_lens.execution.runner import Compute, here
from ot_lens.localization.candidates import Candidate, Maps, candidates, listed
from ot_lens.localization.controls import CONTROLS, REFERENCES, controls, swapped
from ot_lens.localization.methods import Method, fit_maps
from ot_lens.localization.search import confirmations, search_by_pieces
from ot_lens.localization.sequential import sequential_by_pieces
from ot_lens.models import backend
from ot_lens.prompts import ContrastSet
from ot_lens.tables import INDEPENDENT, INDUCE, SEQUENTIAL, SETS, SINGLE

FITTINGS = (INDEPENDENT, SEQUENTIAL)
ANSWERS = ("all", "chosen")
# Methods whose map onto the other class is another map; a projection is the same in both directions.
REVERSIBLE = ("mean_shift", "ace", "linear_act", "pca_ot", "gaussian_ot")


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep tries, beside methods, layers and tokens.

    Attributes:
        sets: "single", "pair" and "all": each layer, every pair, all layers together.
        strengths: Strengths of the edits.
        fitting: "independent", and "sequential" for the sets of more than one layer.
        controls: Kinds of control, "random_subspace" and "permuted_labels"; empty for none. With any control
            the mean shift and the diagonal map (Linear-AcT) are swept too, as references.
        control_draws: Random draws of each control, for every method and layer.
        sufficiency: Also transport harmless activations onto the harmful ones: it must induce refusal.
        search_size: Most layers of the best set that is searched for; 0 for no search.
        search: "beam" or "greedy".
        search_each_size: Report the best set of every size up to `search_size`, and not the best of all; the
            single direction of "rfa" is then chosen likewise.
        layer_sets: Further sets of layers, named one by one.
        answers: "all": answers are generated under every edit, pairs and controls excepted; "chosen": only
            under sets that were searched for or named one by one.
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
            raise HookError(f"strengths = {list(self.strengths)}: give at least one, each in [0, 1].")


def plan_sweep(
    model: Any,
    prompts: ContrastSet,
    acts: Activations,
    methods: Sequence[Method],
    layers: Sequence[int],
    settings: PanelSettings,
    plan: SweepPlan,
    *,
    position: int = -1,
    hook: str = "resid_pre",
    tokens: str = "all",
) -> tuple[list[Candidate], Maps]:
    """Fit what a plan needs; returns its candidates, and the maps of the real methods.

    Raises:
        FitError: If a fit fails.
        HookError: If a choice of the plan is unknown.
    """
    maps = fit_maps(acts, swept(methods, plan), layers=layers, position=position)
    found = plan_by_pieces(
        here(model),
        backend(model).n_layers,
        prompts,
        acts,
        maps,
        methods,
        settings,
        plan,
        position=position,
        hook=hook,
        tokens=tokens,
    )
    return found, maps


def swept(methods: Sequence[Method], plan: SweepPlan) -> list[Method]:
    """The methods asked for, and the references of controls."""
    return [*methods, *(m for m in REFERENCES if plan.controls and m not in methods)]


def plan_by_pieces(
    compute: Compute,
    n_layers: int,
    prompts: ContrastSet,
    acts: Activations,
    maps: Maps,
    methods: Sequence[Method],
    settings: PanelSettings,
    plan: SweepPlan,
    *,
    position: int,
    hook: str,
    tokens: str,
) -> list[Candidate]:
    """Candidates of a plan; see `plan_sweep`. Only its pieces need the model.

    Args:
        compute: Computes the pieces.
        n_layers: Layers of the model.
        prompts: All splits.
        acts: Activations of the training prompts.
        maps: Map of every swept method at every layer.
        methods: The methods asked for.
        settings: The panel.
        plan: What is tried.
        position: Token position of the fits.
        hook: Hook point.
        tokens: Token scope.

    Raises:
        FitError: If a fit fails.
        HookError: If a choice of the plan is unknown.
    """
    layers = list(next(iter(maps.values())))
    generates = plan.answers == "all"
    found = candidates(maps, n_layers, plan.sets, plan.strengths, generates=generates)
    several = [s for s in plan.sets if s != SINGLE]
    if SEQUENTIAL in plan.fitting and several and len(layers) > 1:
        later = sequential_by_pieces(
            compute,
            prompts.train,
            acts,
            list(maps),
            layers=layers,
            position=position,
            hook=hook,
            tokens=tokens,
            batch_size=settings.batch_size,
        )
        # A pair's later map is fitted under the earlier one alone: only all layers together follow from this.
        found += candidates(
            later, n_layers, ["all"], plan.strengths, fitting="sequential", generates=generates
        )
    if plan.sufficiency:
        reversible = [m for m in maps if m.name in REVERSIBLE]
        back = fit_maps(swapped(acts), reversible, layers=layers, position=position)
        found += candidates(back, n_layers, ["single"], plan.strengths, transport=INDUCE, generates=generates)
    real = {method: maps[method] for method in methods}
    found += listed(real, n_layers, plan.layer_sets, plan.strengths)
    if plan.search_size:
        best = search_by_pieces(
            compute,
            n_layers,
            prompts.val.harmful,
            real,
            settings,
            size=plan.search_size,
            kind=plan.search,
            each_size=plan.search_each_size,
            tokens=tokens,
            hook=hook,
        )
        found += confirmations(best, real, n_layers)
    if plan.controls:
        found += controls(
            acts,
            maps,
            n_layers,
            position=position,
            kinds=plan.controls,
            draws=plan.control_draws,
            strength=max(plan.strengths),
            both_ways=REVERSIBLE if plan.sufficiency else (),
            seed=settings.seed,
        )
    return found
