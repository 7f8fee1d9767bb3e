"""The run folder that the refusal_direction repository writes (Arditi et al. 2024, arXiv 2406.11717)."""

import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import pandas as pd
import torch
from jaxtyping import Float64
from pydantic import BaseModel, FailFast, Field, TypeAdapter, ValidationError
from torch import Tensor

from ot_lens.errors import OtLensError, RunFolderError
from ot_lens.io.files import read_json
from ot_lens.io.untrusted import MIB, check_size, first_fault, quoted

MEAN_DIFFS = "generate_directions/mean_diffs.pt"
DIRECTION = "direction.pt"
SELECTED = "direction_metadata.json"
SCORES = "select_direction/direction_evaluations.json"
FILTERED = "select_direction/direction_evaluations_filtered.json"
INTERVENTIONS = ("baseline", "ablation", "actadd")
MAX_TENSOR = 1024 * MIB
# Errors that unpickling a damaged file raises, in torch and in the standard library.
_LOADING_ERRORS = (
    *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError),
    *(OSError, EOFError, MemoryError, pickle.UnpicklingError, BadZipFile, struct.error),
)
Position = Annotated[int, Field(ge=-1_000_000, lt=0)]
Layer = Annotated[int, Field(ge=0, lt=1_000_000)]


class _Score(BaseModel):
    position: Position
    layer: Layer
    refusal_score: float | None
    steering_score: float | None
    kl_div_score: float | None


class _Selected(BaseModel):
    pos: Position
    layer: Layer


class _Loss(BaseModel):
    ce_loss: float
    perplexity: float
    n_tokens: int = Field(ge=0, lt=2**63)


CONTENTS = ("mean_diffs", "direction", "selected", "scores", "filtered", "losses")


@dataclass(frozen=True, eq=False, repr=False)
class RefusalDirectionRun:
    """The content of a run folder of the refusal_direction repository; None for each file that is absent.

    Attributes:
        folder: The run folder.
        mean_diffs: mu_harmful - mu_harmless at resid_pre; the prompt's last position comes last.
        direction: The chosen direction, as published (not normalized).
        selected: The published choice, (position, layer); positions count from the prompt's end.
        scores: One row per candidate: position, layer, refusal_score (bypass) and steering_score (induce) in
            nats, kl_div_score. NaN if the run has none.
        filtered: The candidates that the run's filters left, best first.
        losses: Tidy: intervention (baseline, ablation, actadd), dataset, measure, value, n (tokens), unit.
    """

    folder: Path
    mean_diffs: Float64[Tensor, "position layer d"] | None = None
    direction: Float64[Tensor, " d"] | None = None
    selected: tuple[int, int] | None = None
    scores: pd.DataFrame | None = None
    filtered: pd.DataFrame | None = None
    losses: pd.DataFrame | None = None

    def __repr__(self) -> str:
        """What it holds, and what is missing."""
        missing = [name for name in CONTENTS if getattr(self, name) is None]
        held = ", ".join(name for name in CONTENTS if name not in missing)
        chosen = "" if self.selected is None else "; selected position {}, layer {}".format(*self.selected)
        absent = ", ".join(missing) or "nothing"
        return f"RefusalDirectionRun({self.folder.name}: {held}{chosen}; missing: {absent})"

    @property
    def positions(self) -> tuple[int, ...] | None:
        """Token positions of the candidates, counted from the prompt's end."""
        if self.mean_diffs is not None:
            return tuple(range(-len(self.mean_diffs), 0))
        return None if self.scores is None else tuple(sorted(set(self.scores["position"].tolist())))

    @property
    def n_layers(self) -> int | None:
        """Layers of the model: those of `mean_diffs`, else one more than the highest that was scored."""
        if self.mean_diffs is not None:
            return int(self.mean_diffs.shape[1])
        return None if self.scores is None else int(self.scores["layer"].max()) + 1

    def directions(self, position: int | None = None) -> Float64[Tensor, "layer d"]:
        """The difference in means of every layer at one position.

        Args:
            position: Counted from the prompt's end; default: the selected one, else the last.

        Raises:
            OtLensError: If the run has no mean_diffs.pt, or no such position.
        """
        if self.mean_diffs is None or self.positions is None:
            raise OtLensError(f"The run {self.folder.name} has no {MEAN_DIFFS}: there are no directions.")
        chosen = self.default_position if position is None else position
        if chosen not in self.positions:
            raise OtLensError(f"Position {chosen} is not in the run: it has {list(self.positions)}.")
        return self.mean_diffs[chosen]

    @property
    def default_position(self) -> int:
        """The selected position, or the last of the prompt if no choice is recorded."""
        return -1 if self.selected is None else self.selected[0]


def read_refusal_direction_run(folder: str | Path) -> RefusalDirectionRun:
    """Read a run folder that the refusal_direction repository wrote (`pipeline/runs/MODEL`).

    Tensors are loaded with `weights_only` to the CPU, as float64 with their own storage: the published
    direction.pt contains a complete mean_diffs.pt.

    Args:
        folder: The folder that holds direction_metadata.json.

    Returns:
        Its content; None for a file that is absent.

    Raises:
        RunFolderError: If the folder is missing, holds no file of such a run, or a damaged one.
    """
    path = Path(folder)
    if not path.is_dir():
        raise RunFolderError(f"There is no folder {str(folder)!r}: give pipeline/runs/MODEL.")
    mean_diffs, direction = _tensor(path / MEAN_DIFFS, 3), _tensor(path / DIRECTION, 1)
    if mean_diffs is not None and direction is not None and mean_diffs.shape[2] != len(direction):
        raise RunFolderError(
            f"{folder}: {MEAN_DIFFS} has width {mean_diffs.shape[2]}, {DIRECTION} {len(direction)}: "
            "the files are from two runs."
        )
    selected = _validated(path / SELECTED, _Selected)
    run = RefusalDirectionRun(
        folder=path,
        mean_diffs=mean_diffs,
        direction=direction,
        selected=None if selected is None else (selected.pos, selected.layer),
        scores=_scores(path / SCORES),
        filtered=_scores(path / FILTERED),
        losses=_losses(path),
    )
    if all(getattr(run, name) is None for name in CONTENTS):
        raise RunFolderError(
            f"{folder} holds none of {MEAN_DIFFS}, {DIRECTION}, {SELECTED}, {SCORES}: it is not a run folder "
            "of refusal_direction."
        )
    return run


def _tensor(path: Path, ndim: int) -> Tensor | None:
    try:
        size = check_size(path, MAX_TENSOR, RunFolderError)
    except FileNotFoundError:
        return None
    try:
        with ZipFile(path) as archive:  # of torch.save >= 1.6, not compressed: nothing expands
            files = archive.infolist()
        if any(f.compress_type != ZIP_STORED for f in files) or sum(f.file_size for f in files) > size:
            raise ValueError("its content is compressed; save it again with torch.save")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _LOADING_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunFolderError(f"{path} is damaged, or more than a tensor: {quoted(reason)}.") from error
    if not isinstance(loaded, Tensor) or loaded.ndim != ndim or not loaded.is_floating_point():
        kind = f"shape {tuple(loaded.shape)}" if isinstance(loaded, Tensor) else type(loaded).__name__
        raise RunFolderError(f"{path} holds {kind}: expected a floating-point tensor with {ndim} axes.")
    # A tensor with stride 0 can have any number of values, one on the meta device has none.
    plain = loaded.layout == torch.strided and loaded.device.type == "cpu"
    if not plain or loaded.numel() * loaded.element_size() > size or not loaded.numel():
        raise RunFolderError(
            f"{path} holds a tensor with {loaded.numel()} values in {size} bytes: save it again."
        )
    return loaded.detach().double().clone()


def _validated(path: Path, kind: Any) -> Any:
    """The file's content as `kind`, or None without a file."""
    if not path.exists():
        return None
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ValidationError as error:
        field, message = first_fault(error)
        raise RunFolderError(f"{path}: {field or 'the file'}: {message}. Fetch the file again.") from error


def _scores(path: Path) -> pd.DataFrame | None:
    rows = _validated(path, Annotated[list[_Score], FailFast()])
    if rows is None:
        return None
    table = pd.DataFrame([row.model_dump() for row in rows], columns=list(_Score.model_fields))
    return table.astype({"position": "int64", "layer": "int64"} | dict.fromkeys(table.columns[2:], "float64"))


def _losses(folder: Path) -> pd.DataFrame | None:
    rows = []
    for intervention in INTERVENTIONS:
        path = folder / f"loss_evals/{intervention}_loss_eval.json"
        for dataset, loss in (_validated(path, dict[str, _Loss]) or {}).items():
            keys = {"intervention": intervention, "dataset": dataset, "n": loss.n_tokens}
            rows.append({**keys, "measure": "ce_loss", "value": loss.ce_loss, "unit": "nats"})
            rows.append({**keys, "measure": "perplexity", "value": loss.perplexity, "unit": ""})
    columns = ["intervention", "dataset", "measure", "value", "n", "unit"]
    return pd.DataFrame(rows, columns=columns) if rows else None
