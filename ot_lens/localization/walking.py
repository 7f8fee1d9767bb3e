"""Which candidates are measured together, and their next-token readings in one walk up the blocks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxtyping import Float64
from torch import Tensor

from ot_lens.behaviour.panel import (
    NEXT_TOKEN_MEASURES,
    NextToken,
    PanelSettings,
    values_of_logits,
    without_nan,
)
from ot_lens.errors import HookError, SinglePassError
from ot_lens.interventions import Edits
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.outside import domains_of, observer
from ot_lens.localization.settings import SweepSettings
from ot_lens.prompts import Contrast, Prompt
from ot_lens.single_pass import Observe, nothing, observed_sweep, why_not

# Candidates per batch. An answer becomes known to the others of its batch, and the walk of the single pass is
# repeated for each batch: large ones cost less, but a stop repeats the last one.
ANSWERED, READ = 32, 128


@dataclass(frozen=True, eq=False)
class CandidateBatch:
    """Candidates of one token scope, measured together; the first also has the unedited model."""

    candidates: tuple[Candidate, ...]
    unedited: bool = False

    @property
    def tokens(self) -> str | None:
        """The token scope that all of them have; None if there are none."""
        return self.candidates[0].tokens if self.candidates else None


@dataclass(frozen=True, eq=False)
class Walked:
    """What a walk read of the next token."""

    readings: Mapping[str, Mapping[str, NextToken]]  # by class, then by the candidate's key
    unedited: Mapping[str, NextToken]  # by class, from the same forward pass
    outside: Mapping[str, Float64[Tensor, "prompt column"]]  # see `observer`; by class, from that pass too
    columns: Mapping[str, Mapping[str, str]] = field(repr=False)  # engine and note, by key
    obstacle: str | None  # why the model cannot be walked; None if it can, or was not to be


def walk_batch(
    model: Any,
    prompts: Contrast,
    batch: CandidateBatch,
    settings: SweepSettings,
    obstacle: str | None = None,
) -> Walked:
    """Read the next token under every candidate that can be walked, and without edits, in one pass."""
    reasons: dict[str, str | None] = dict.fromkeys([c.key for c in batch.candidates])
    if settings.walks:
        reasons = {c.key: why_not(model, c.edits, settings.hook) or obstacle for c in batch.candidates}
    reason = next((reason for reason in reasons.values() if reason), None)
    if settings.engine == "single_pass" and reason is not None:
        raise HookError(f"engine 'single_pass' cannot serve this sweep: {reason}; choose 'auto' or 'hooks'.")
    readings, unedited, outside = {}, {}, {}
    for label, group in prompts:
        walked = [c for c in batch.candidates if reasons[c.key] is None and label in c.prompts]
        if not settings.walks or not walked:
            continue
        try:
            observe = observer(domains_of(walked, label), settings.hook, walked[0].tokens)
            (*edited, unedited[label]), outside[label] = _read(model, group, walked, settings, observe)
        except SinglePassError as error:
            return walk_batch(model, prompts, batch, settings, str(error))
        readings[label] = {c.key: reading for c, reading in zip(walked, edited, strict=True)}
    columns = {}
    for candidate in batch.candidates:
        reason = reasons[candidate.key]
        hooked = "" if reason is None else f"plain hooks: {reason}"
        note = "; ".join(filter(None, (candidate.note, hooked)))
        engine = "single_pass" if settings.walks and reason is None else "hooks"
        columns[candidate.key] = {"engine": engine, "note": note}
    return Walked(readings, unedited, outside, columns, obstacle)


def is_answered(candidate: Candidate, panel: PanelSettings) -> bool:
    """Whether more is measured under a candidate than the next token, which takes far longer."""
    return candidate.generates and (panel.needs_answers or bool({*panel.measures} - {*NEXT_TOKEN_MEASURES}))


def candidate_batches(candidates: Sequence[Candidate], panel: PanelSettings) -> list[CandidateBatch]:
    """Candidates that are walked together, always the same ones.

    The last digits of a sum depend on the rest of its batch: a candidate is always walked with all of its
    batch, also when the others are not needed, so that its values do not depend on where a run was stopped.
    """
    answered = [candidate for candidate in candidates if is_answered(candidate, panel)]
    read = [candidate for candidate in candidates if not is_answered(candidate, panel)]
    groups = [
        tuple(group[start : start + size])
        for together, size in ((answered, ANSWERED), (read, READ))
        for group in _by_scope(together).values()
        for start in range(0, len(group), size)
    ]
    return [CandidateBatch(group, unedited=number == 0) for number, group in enumerate(groups or [()])]


def _by_scope(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.tokens, []).append(candidate)
    return groups


def _read(
    model: Any,
    prompts: Sequence[Prompt],
    candidates: Sequence[Candidate],
    settings: SweepSettings,
    observe: Observe,
) -> tuple[list[NextToken], Float64[Tensor, "prompt column"]]:
    """The reading under every candidate, all of one token scope, then that without edits."""
    edits, scope = [*(candidate.edits for candidate in candidates), {}], candidates[0].tokens
    values, observed = next_token_readings(model, prompts, edits, settings, scope, observe)
    return [NextToken(value[:, 0], value[:, 1]) for value in values], observed


def next_token_readings(
    model: Any,
    prompts: Sequence[Prompt],
    edits: Sequence[Edits],
    settings: SweepSettings,
    tokens: str,
    observe: Observe = nothing,
) -> tuple[Float64[Tensor, "candidate prompt two"], Float64[Tensor, "prompt column"]]:
    """Refusal score and KL of every prompt under every edit, and what is observed, in one walk."""
    values, observed = observed_sweep(
        model,
        prompts,
        edits,
        partial(values_of_logits, tokens=settings.panel.refusal_tokens),
        observe,
        tokens=tokens,
        hook=settings.hook,
        batch_size=settings.panel.batch_size,
    )
    return without_nan(values), observed
