"""How a sweep is fitted and measured, and which of its candidates are measured together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ot_lens.activations import resolve_layers
from ot_lens.behaviour import (
    NEXT_TOKEN_MEASURES,
    PanelSettings,
    model_phrases,
    phrase_list,
    refusal_token_ids,
)
from ot_lens.errors import HookError, one_of
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.localization.candidates import Candidate
from ot_lens.models import backend

ENGINES = ("auto", "single_pass", "hooks")
# Candidates per batch. Generating answers costs far more than the walk of the single pass, which is repeated
# for each batch; where only the next token is read, a batch must outweigh the forward pass of its walk.
ANSWERED, READ = 4, 128

CandidateBatch = tuple[Candidate, ...]


@dataclass(frozen=True)
class SweepSettings:
    """How every candidate of a sweep is fitted and measured.

    Attributes:
        panel: What is measured.
        layers: The layers that are swept.
        n_layers: Number of layers of the model.
        position: Token position of the fits, counted from the prompt's end.
        tokens: Token scope of the edits.
        hook: Hook point of fits and edits.
        engine: "single_pass" walks up the blocks once for the next-token measures of all candidates; "hooks"
            runs the model once per candidate; "auto" walks where possible, and the table says where not.
    """

    panel: PanelSettings
    layers: tuple[int, ...]
    n_layers: int
    position: int = -1
    tokens: str = "all"
    hook: str = "resid_pre"
    engine: str = "auto"

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            HookError: If token scope or engine is unknown.
        """
        one_of("token scope", self.tokens, TOKEN_SCOPES, HookError)
        one_of("engine", self.engine, ENGINES, HookError)

    @property
    def columns(self) -> dict[str, Any]:
        """Columns of the table that are the same for every candidate."""
        return {"tokens": self.tokens, "hook": self.hook, "seed": self.panel.seed}

    @property
    def walks(self) -> bool:
        """Whether to try the single pass."""
        return self.engine != "hooks" and self.panel.reads_next_token


def sweep_settings(
    model: Any,
    measures: Sequence[str],
    *,
    layers: str | Sequence[int] = "all",
    position: int = -1,
    tokens: str = "all",
    hook: str = "resid_pre",
    engine: str = "auto",
    phrases: str | Sequence[str] | None = None,
    refusal_tokens: Sequence[str | int] | None = None,
    **panel: Any,
) -> SweepSettings:
    """Settings with the model's own layers, phrases and refusal tokens where none are given.

    Args:
        model: A hooked model.
        measures: What is measured.
        layers: "all" or layer numbers.
        position: Token position of the fits.
        tokens: Token scope of the edits.
        hook: Hook point.
        engine: "single_pass", "hooks" or "auto".
        phrases: Phrases of a refusal.
        refusal_tokens: Tokens that begin a refusal.
        panel: Further fields of `PanelSettings`.

    Raises:
        HookError: If a layer, token scope or engine does not exist.
        PromptError: If a measure is unknown.
    """
    n_layers = backend(model).n_layers
    readings = PanelSettings(
        measures=tuple(measures),
        phrases=model_phrases(model) if phrases is None else phrase_list(phrases),
        refusal_tokens=refusal_token_ids(model, refusal_tokens),
        **panel,
    )
    return SweepSettings(readings, resolve_layers(layers, n_layers), n_layers, position, tokens, hook, engine)


def candidate_batches(candidates: Sequence[Candidate], panel: PanelSettings) -> list[CandidateBatch]:
    """Candidates that are walked together, always the same ones.

    The last digits of a sum depend on the rest of its batch: a candidate is always walked with all of its
    batch, also when the others are not needed, so that its values do not depend on where a run was stopped.
    """
    answers = panel.needs_answers or bool(set(panel.measures) - set(NEXT_TOKEN_MEASURES))
    answered = [candidate for candidate in candidates if answers and candidate.generates]
    read = [candidate for candidate in candidates if not (answers and candidate.generates)]
    return [
        tuple(group[start : start + size])
        for group, size in ((answered, ANSWERED), (read, READ))
        for start in range(0, len(group), size)
    ]
