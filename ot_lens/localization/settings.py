"""What a sweep tries, and how its edits are fitted and measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ot_lens.activations import resolve_layers
from ot_lens.behaviour import model_phrases, phrase_list, refusal_token_ids
from ot_lens.behaviour.panel import PanelSettings
from ot_lens.errors import HookError, one_of
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.models import backend
from ot_lens.tables import INDEPENDENT, SEQUENTIAL, SETS
from ot_lens.transport import method_named

ENGINES = ("auto", "single_pass", "hooks")
# "auto": each method's own scope; see `scope_of`.
AUTO = "auto"
SCOPES = (AUTO, *TOKEN_SCOPES)
FITTINGS = (INDEPENDENT, SEQUENTIAL)
ANSWERS = ("all", "chosen")
RANDOM, PERMUTED = CONTROLS = ("random_subspace", "permuted_labels")
SEARCHES = ("greedy", "beam")
MAX_LAYERS = 4


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep tries, besides methods and layers; see the arguments of `localize`."""

    sets: tuple[str, ...] = ("single", "all")
    strengths: tuple[float, ...] = (1.0,)
    fitting: tuple[str, ...] = (INDEPENDENT,)
    # With any control the mean shift and the diagonal map (Linear-AcT) are swept too, as references.
    controls: tuple[str, ...] = ()
    control_draws: int = 5
    sufficiency: bool = False
    search_size: int = 0
    search: str = "beam"
    # Sets scored at most for each method; None: as many as cost what the rest of the sweep does.
    search_budget: int | None = None
    # Report the best set of every size instead of the best overall, and the best single direction of "rfa".
    search_each_size: bool = False
    layer_sets: tuple[tuple[int, ...], ...] = ()
    # "all": answers under every edit except pairs and controls; "chosen": under searched or listed sets only.
    answers: str = "all"

    def __post_init__(self) -> None:
        """Raise a HookError if a choice is unknown or out of range."""
        for what, values, allowed in (
            ("layer set", self.sets, SETS),
            ("control", self.controls, CONTROLS),
            ("fitting", self.fitting, FITTINGS),
            ("search", (self.search,), SEARCHES),
            ("choice of answers", (self.answers,), ANSWERS),
        ):
            for value in values:
                one_of(what, value, allowed, HookError)
        if not self.sets:
            raise HookError(f"sets is empty: choose from {', '.join(SETS)}.")
        if not self.strengths or not all(0 <= t <= 1 for t in self.strengths):
            raise HookError(f"strengths must be at least one number in [0, 1], got {list(self.strengths)}.")
        if self.controls and self.control_draws < 2:
            raise HookError(
                f"A control band needs at least 2 draws, got control_draws = {self.control_draws}: "
                "give more, or no controls."
            )
        if not 0 <= self.search_size <= MAX_LAYERS:
            raise HookError(f"search_size must be 0 (no search) to {MAX_LAYERS}, got {self.search_size}.")
        if self.search_budget is not None and self.search_budget < 1:
            raise HookError(f"search_budget must be at least 1, got {self.search_budget}.")


@dataclass(frozen=True)
class SweepSettings:
    """How every candidate of a sweep is fitted and measured; see the arguments of `localize`."""

    panel: PanelSettings
    layers: tuple[int, ...]
    n_layers: int  # of the model
    position: int = -1
    tokens: str = AUTO
    hook: str = "resid_pre"
    # "single_pass" walks up the blocks once for the next-token measures of all candidates, "hooks" runs the
    # model once per candidate, "auto" walks where possible, and the table says where not. Answers that are
    # known already are verified instead of generated, except with "hooks".
    engine: str = "auto"
    outcomes: bool = False  # keep what happened to each prompt, too; see `ot_lens.localization.outcomes`

    def __post_init__(self) -> None:
        """Raise a HookError if token scope or engine is unknown."""
        one_of("token scope", self.tokens, SCOPES, HookError)
        one_of("engine", self.engine, ENGINES, HookError)

    @property
    def columns(self) -> dict[str, Any]:
        """Columns of the table that are the same for every candidate."""
        return {"hook": self.hook, "seed": self.panel.seed}

    def scope(self, method: str) -> str:
        """Token scope of a method's edits; see `scope_of`."""
        return scope_of(method, self.tokens, self.position)

    @property
    def walks(self) -> bool:
        """Whether to try the single pass."""
        return self.engine != "hooks" and self.panel.reads_next_token


def scope_of(method: str, tokens: str, position: int) -> str:
    """Token scope of a method's edits: the one asked for, or the method's own.

    A projection acts on all tokens. A map that moves a distribution knows nothing of other tokens than those
    it was fitted on; no scope holds a token before the last one alone, so that "all" is left there.
    """
    known = method_named(method)
    asked = next((scope for scope in (tokens, known.tokens) if scope != AUTO), None)
    fitted = "last" if known.is_local and position == -1 else "all"
    return asked or fitted


def sweep_settings(
    model: Any,
    measures: Sequence[str],
    *,
    layers: str | Sequence[int] = "all",
    position: int = -1,
    tokens: str = AUTO,
    hook: str = "resid_pre",
    engine: str = "auto",
    phrases: str | Sequence[str] | None = None,
    refusal_tokens: Sequence[str | int] | None = None,
    outcomes: bool = False,
    **panel: Any,
) -> SweepSettings:
    """Settings with the model's own layers, phrases and refusal tokens where none are given."""
    n_layers = backend(model).n_layers
    readings = PanelSettings(
        measures=tuple(measures),
        phrases=model_phrases(model) if phrases is None else phrase_list(phrases),
        refusal_tokens=refusal_token_ids(model, refusal_tokens),
        **panel,
    )
    swept = resolve_layers(layers, n_layers)
    return SweepSettings(readings, swept, n_layers, position, tokens, hook, engine, outcomes)
