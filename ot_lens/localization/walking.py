"""Next-token readings of many candidates in one walk up the blocks, where the single pass serves them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Float64
from torch import Tensor

from ot_lens.behaviour import NextToken, PanelSettings, next_token_values
from ot_lens.errors import HookError
from ot_lens.localization.candidates import Candidate
from ot_lens.localization.units import Measuring, Unit
from ot_lens.prompts import Contrast, Prompt
from ot_lens.single_pass import next_token_sweep, why_not


@dataclass(frozen=True, eq=False)
class Walked:
    """What the walk read, and what it did not.

    Attributes:
        readings: By class and candidate key.
        reasons: By candidate key, why plain hooks must serve it; None where the walk did.
        walks: Whether the walk was tried at all.
    """

    readings: Mapping[str, Mapping[str, NextToken]]
    reasons: Mapping[str, str | None]
    walks: bool

    def columns(self, candidate: Candidate) -> dict[str, str]:
        """Executor and note of a candidate, for the table."""
        reason = self.reasons[candidate.key]
        engine = "single_pass" if self.walks and reason is None else "hooks"
        return {
            "engine": engine,
            "note": candidate.note or ("" if reason is None else f"plain hooks: {reason}"),
        }


def walk_units(
    model: Any, prompts: Contrast, groups: Sequence[Unit], how: Measuring, obstacle: str | None
) -> Walked:
    """Read the next token under every candidate of some units; each unit is walked by itself.

    Args:
        model: A hooked model.
        prompts: The split to measure on.
        groups: Units.
        how: Panel, token scope, hook point and engine.
        obstacle: Why the model cannot be replayed, or None.

    Raises:
        HookError: If engine "single_pass" is asked for and cannot serve.
    """
    found = [candidate for group in groups for candidate in group]
    if not how.walks:
        return Walked({label: {} for label, _ in prompts}, dict.fromkeys((c.key for c in found), None), False)
    reasons = {c.key: why_not(model, c.edits, how.hook) or obstacle for c in found}
    _refuse(how.engine, next((reason for reason in reasons.values() if reason), None))
    readings = {}
    for label, asked in prompts:
        concerned = [[c for c in group if reasons[c.key] is None and label in c.prompts] for group in groups]
        readings[label] = _read(model, asked, [group for group in concerned if group], how)
    return Walked(readings, reasons, True)


def _read(
    model: Any, prompts: Sequence[Prompt], groups: Sequence[Sequence[Candidate]], how: Measuring
) -> dict[str, NextToken]:
    found = [candidate for group in groups for candidate in group]
    if not found:
        return {}
    numbers = iter(range(len(found)))
    values = next_token_sweep(
        model,
        prompts,
        [candidate.edits for candidate in found],
        _reducer(how.settings),
        tokens=how.tokens,
        hook=how.hook,
        batch_size=how.settings.batch_size,
        groups=[[next(numbers) for _ in group] for group in groups],
        checked=True,
    )
    return {c.key: NextToken(value[:, 0], value[:, 1]) for c, value in zip(found, values, strict=True)}


def _refuse(engine: str, reason: str | None) -> None:
    if engine == "single_pass" and reason is not None:
        raise HookError(f"engine 'single_pass' cannot serve this sweep: {reason}; choose 'auto' or 'hooks'.")


def _reducer(settings: PanelSettings) -> Callable[[Tensor, Tensor], Tensor]:
    def reduce(
        rows: Float[Tensor, "row batch d_vocab"], own: Float[Tensor, "batch d_vocab"]
    ) -> Float64[Tensor, "row batch two"]:
        return next_token_values(rows.log_softmax(-1), own.log_softmax(-1), settings)

    return reduce
