"""Which candidates are measured together, and their next-token readings in one walk up the blocks."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.behaviour.panel import NEXT_TOKEN_MEASURES, NextToken, PanelSettings, next_token_values
from ot_lens.errors import HookError, SinglePassError, nan_logits
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.settings import SweepSettings
from ot_lens.prompts import Contrast, Prompt
from ot_lens.single_pass import next_token_sweep, why_not

# Candidates per batch. An answer becomes known to the others of its batch, and the walk of the single pass is
# repeated for each batch: large ones cost less, but a stop repeats the last one.
ANSWERED, READ = 32, 128

CandidateBatch = tuple[Candidate, ...]


def walk_batches(
    model: Any,
    prompts: Contrast,
    batches: Sequence[CandidateBatch],
    settings: SweepSettings,
    obstacle: str | None,
) -> tuple[dict[str, dict[str, NextToken]], dict[str, dict[str, str]]]:
    """Read the next token under every candidate that can be walked; `obstacle` says why none can.

    Returns the readings by class and key, and by key the engine and the note for the table.
    """
    candidates = [candidate for batch in batches for candidate in batch]
    reasons: dict[str, str | None] = {c.key: None for c in candidates}
    if settings.walks:
        reasons = {c.key: why_not(model, c.edits, settings.hook) or obstacle for c in candidates}
    reason = next((reason for reason in reasons.values() if reason), None)
    if settings.engine == "single_pass" and reason is not None:
        raise HookError(f"engine 'single_pass' cannot serve this sweep: {reason}; choose 'auto' or 'hooks'.")
    readings: dict[str, dict[str, NextToken]] = {}
    for label, group in prompts:
        walked = [
            [c for c in batch if settings.walks and reasons[c.key] is None and label in c.prompts]
            for batch in batches
        ]
        readings[label] = {}
        try:
            for scope in _by_scope(candidates):
                at_scope = [batch for batch in walked if batch and batch[0].tokens == scope]
                readings[label] |= _read(model, group, at_scope, settings)
        except SinglePassError as error:
            return walk_batches(model, prompts, batches, settings, str(error))
    columns = {}
    for candidate in candidates:
        reason = reasons[candidate.key]
        note = candidate.note or ("" if reason is None else f"plain hooks: {reason}")
        engine = "single_pass" if settings.walks and reason is None else "hooks"
        columns[candidate.key] = {"engine": engine, "note": note}
    return readings, columns


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
        for together, size in ((answered, ANSWERED), (read, READ))
        for group in _by_scope(together).values()
        for start in range(0, len(group), size)
    ]


def _by_scope(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.tokens, []).append(candidate)
    return groups


def _read(
    model: Any, prompts: Sequence[Prompt], batches: Sequence[Sequence[Candidate]], settings: SweepSettings
) -> dict[str, NextToken]:
    candidates = [candidate for batch in batches for candidate in batch]
    if not candidates:
        return {}
    edits = [candidate.edits for candidate in candidates]
    numbers = iter(range(len(candidates)))
    groups = [[next(numbers) for _ in batch] for batch in batches]
    scope = candidates[0].tokens
    values = next_token_readings(model, prompts, edits, settings, scope, groups=groups, checked=True)
    return {c.key: NextToken(value[:, 0], value[:, 1]) for c, value in zip(candidates, values, strict=True)}


def next_token_readings(
    model: Any,
    prompts: Sequence[Prompt],
    edits: Sequence[Any],
    settings: SweepSettings,
    tokens: str,
    **options: Any,
) -> Float64[Tensor, "candidate prompt two"]:
    """Refusal score and KL of every prompt under every edit, in one walk."""

    def reduce(
        rows: Float[Tensor, "row batch d_vocab"], own: Float[Tensor, "batch d_vocab"]
    ) -> Float64[Tensor, "row batch two"]:
        return next_token_values(rows.log_softmax(-1), own.log_softmax(-1), settings.panel)

    values = next_token_sweep(
        model,
        prompts,
        edits,
        reduce,
        tokens=tokens,
        hook=settings.hook,
        batch_size=settings.panel.batch_size,
        **options,
    )
    bad = int(values.isnan().any(dim=-1).any(dim=0).sum())
    if bad:
        raise nan_logits(bad, len(prompts))
    return values
