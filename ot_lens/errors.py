"""All errors and warnings. Each message gives the cause, the value that caused it and the remedy."""

from collections.abc import Sequence
from typing import Any

MAX_VALUE = 80  # characters of a wrong value in a message
MAX_MESSAGE = 2_000


class OtLensError(ValueError):
    """A mistake in the input; the command line prints it on one line and exits with status 2.

    A very long message is cut in the middle: the cause is at its beginning, the remedy at its end.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > MAX_MESSAGE:
            half = MAX_MESSAGE // 2
            message = f"{message[:half]} ... {message[-half:]}"
        super().__init__(message)


class OtLensTypeError(OtLensError, TypeError):
    """An argument of the wrong type."""


class ActivationError(OtLensError):
    """Activations that cannot be used: NaN or Inf, a wrong shape or dtype, too few samples, an overflow."""


class FitError(OtLensError):
    """A map that cannot be fitted: unknown method, impossible k, ridge or shrinkage."""


class NotInvertibleError(OtLensError):
    """A map without an inverse, such as a projection."""


class ModelError(OtLensError):
    """A model that is unknown, unreachable or of an unsupported kind."""


class PromptError(OtLensError):
    """Prompts that cannot be read or rendered: an empty class, a missing chat template."""


class HookError(OtLensError):
    """A layer, hook point, position or token scope that the model does not have."""


class RunFolderError(OtLensError):
    """A run folder that is missing, belongs to another run, or cannot be written."""


class CannotWriteError(RunFolderError):
    """A file that cannot be written: a full disk, a read-only folder. Its previous content is unchanged."""


class ConfigError(OtLensError):
    """A study configuration that does not validate."""


class TableError(OtLensError):
    """A table that cannot be drawn: a column is missing."""


class NothingToDrawError(TableError):
    """A table that is missing, empty, or without a finite value of the quantity drawn."""


class AlteredTableError(OtLensError):
    """A table with all its columns, but with rows that no sweep writes together."""


class ExplorerError(OtLensError):
    """The explorer cannot be served as requested."""


class ExecutorError(OtLensError):
    """An executor that is not installed, cannot be reached, or has no room for the model."""


class InstallationError(OtLensError):
    """Something that the core needs is not installed, or does not work."""


class SinglePassError(OtLensError):
    """The single-pass engine does not serve this model or edit; plain hooks do."""


class JudgeError(OtLensError):
    """A judge that cannot be built or used, or whose verdicts cannot be read."""


class EvidenceError(OtLensError):
    """Something that a check of `verify` needs is missing; a check of its own reports that."""


class NoDirectionLeftError(OtLensError):
    """The filters of direction selection left no candidate.

    Attributes:
        filters: How many candidates each filter removed, in order (`FilterCount`).
        table: The candidates, each with the filter that dropped it.
    """

    def __init__(self, message: str, filters: Any, table: Any) -> None:
        super().__init__(message)
        self.filters = filters
        self.table = table


class PromptWarning(UserWarning):
    """Prompts that a model reads otherwise than one would expect: a thought, a control token in a prompt."""


class PoorFitWarning(UserWarning):
    """A map whose numbers should not be trusted as they are; the message names the remedy."""


class UnusedWeightsWarning(UserWarning):
    """A checkpoint holds weights that the model has no place for."""


class OutOfDomainWarning(UserWarning):
    """A map that acts on activations unlike those it was fitted on; the message names the remedy."""


class NotMeasuredWarning(UserWarning):
    """A part of a study that cannot be measured on this model; the message says why."""


class HelperLostWarning(UserWarning):
    """Another process that shared the work has ended; the work goes on without it."""


class BatchHalvedWarning(UserWarning):
    """A batch did not fit into memory and was split in two; the results are those of the whole batch."""


def nan_logits(bad: int, n: int) -> ActivationError:
    """The error of a measure whose model overflowed: a mean over the other prompts would be wrong."""
    return ActivationError(
        f"The model's logits contain NaN or Inf for {bad} of {n} prompts: use bfloat16 or float32, or a "
        "weaker edit."
    )


def one_of(what: str, value: object, allowed: Sequence[str], error: type[OtLensError] = ConfigError) -> None:
    """Raise an error of the kind `error` unless `value` is one of the `allowed` names."""
    if value not in allowed:
        raise error(f"There is no {what} {repr(value)[:MAX_VALUE]}: choose one of {', '.join(allowed)}.")
