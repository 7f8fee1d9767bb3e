"""Next-token readings of many candidates in one walk up the blocks, where the single pass can serve them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.behaviour import NextToken, next_token_values
from ot_lens.errors import HookError
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.settings import CandidateBatch, SweepSettings
from ot_lens.prompts import Contrast, Prompt
from ot_lens.single_pass import next_token_sweep, why_not


@dataclass(frozen=True, eq=False)
class Walked:
    """What the walk read.

    Attributes:
        readings: By class and candidate key.
        reasons: By candidate key, why plain hooks must serve it; None where the walk did.
        walks: Whether the walk was tried.
    """

    readings: Mapping[str, Mapping[str, NextToken]]
    reasons: Mapping[str, str | None]
    walks: bool

    def columns(self, candidate: Candidate) -> dict[str, str]:
        """Engine and note of a candidate, for the table."""
        reason = self.reasons[candidate.key]
        engine = "single_pass" if self.walks and reason is None else "hooks"
        return {
            "engine": engine,
            "note": candidate.note or ("" if reason is None else f"plain hooks: {reason}"),
        }


def walk_batches(
    model: Any,
    prompts: Contrast,
    batches: Sequence[CandidateBatch],
    settings: SweepSettings,
    obstacle: str | None,
) -> Walked:
    """Read the next token under every candidate, batch by batch; `obstacle` says why no model can be walked.

    Raises:
        HookError: If engine "single_pass" is requested and cannot serve.
    """
    candidates = [candidate for batch in batches for candidate in batch]
    if not settings.walks:
        return Walked({label: {} for label, _ in prompts}, dict.fromkeys(c.key for c in candidates), False)
    reasons = {c.key: why_not(model, c.edits, settings.hook) or obstacle for c in candidates}
    reason = next((reason for reason in reasons.values() if reason), None)
    if settings.engine == "single_pass" and reason is not None:
        raise HookError(f"engine 'single_pass' cannot serve this sweep: {reason}; choose 'auto' or 'hooks'.")
    readings = {}
    for label, group in prompts:
        walked = [[c for c in batch if reasons[c.key] is None and label in c.prompts] for batch in batches]
        readings[label] = _read(model, group, [batch for batch in walked if batch], settings)
    return Walked(readings, reasons, True)


def _read(
    model: Any, prompts: Sequence[Prompt], batches: Sequence[Sequence[Candidate]], settings: SweepSettings
) -> dict[str, NextToken]:
    candidates = [candidate for batch in batches for candidate in batch]
    if not candidates:
        return {}
    numbers = iter(range(len(candidates)))
    values = next_token_readings(
        model,
        prompts,
        [candidate.edits for candidate in candidates],
        settings,
        groups=[[next(numbers) for _ in batch] for batch in batches],
        checked=True,
    )
    return {c.key: NextToken(value[:, 0], value[:, 1]) for c, value in zip(candidates, values, strict=True)}


def next_token_readings(
    model: Any, prompts: Sequence[Prompt], edits: Sequence[Any], settings: SweepSettings, **options: Any
) -> Float64[Tensor, "candidate prompt two"]:
    """Refusal score and KL of every prompt under every edit, in one walk."""

    def reduce(
        rows: Float[Tensor, "row batch d_vocab"], own: Float[Tensor, "batch d_vocab"]
    ) -> Float64[Tensor, "row batch two"]:
        return next_token_values(rows.log_softmax(-1), own.log_softmax(-1), settings.panel)

    return next_token_sweep(
        model,
        prompts,
        edits,
        reduce,
        tokens=settings.tokens,
        hook=settings.hook,
        batch_size=settings.panel.batch_size,
        **options,
    )
