"""The run folder: its files are complete, another run is never touched, tables are checked when read."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ot_lens.errors import RunFolderError
from ot_lens.io import files
from ot_lens.io.parquet import MAX_BYTES, read_frame
from ot_lens.io.untrusted import CONTROL, quoted, read_bounded
from ot_lens.study.config import StudyConfig, commented_yaml, parse_config
from ot_lens.study.manifest import SCHEMA, machine, manifest_hash, read_manifest, seeds, source_hash, versions

WHOLE = (
    "layer", "layer_a", "layer_b", "layer_other", "edited_layer", "at_layer", "head", "component",
    "coordinate", "prompt", "k", "draw", "draws", "n",
)  # fmt: skip
NUMBERS = (
    "value", "low", "high", "null_mean", "null_low", "null_high", "strength", "p_value", "p_holm", "cosine",
    "angle", "eigenvalue", "share", "pc1", "pc2", "mean1", "mean2", "cov11", "cov12", "cov22", "pc1_share",
    "pc2_share", "p_adjusted",
)  # fmt: skip
TEXTS = (
    "set", "layers", "method", "tokens", "hook", "transport", "control", "fitting", "measure", "prompts",
    "unit", "interval", "test", "engine", "note", "class", "state", "quantity", "robust", "other",
    "token", "patched", "module",
)  # fmt: skip
# Columns of text that are whole numbers in other tables: there, principal components.
NAMED = {"contributions": ("component",)}
LARGEST = 10**9
LONGEST = 4_000


class RunFolder:
    """A run on disk: its folder, and the manifest of what it was made from and how far it got."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def start(cls, path: Path, config: StudyConfig, *, resume: bool) -> "RunFolder":
        """Start or continue a run in a folder that the caller has locked; leftovers of killed writers go."""
        folder = cls.existing(path, config, resume=resume)
        for entry in (path, *path.rglob("*")):
            if entry.is_dir():
                files.remove_temporaries(entry)
        if folder is None:
            folder = cls(path, _first_manifest(config))
            folder.save_manifest()
        now, known = versions(), folder.manifest.get("resumed_with", [])
        if now not in (folder.manifest.get("versions"), *known):
            folder.save_manifest(resumed_with=[*known, now])
        if not (path / "config.yaml").is_file():
            files.write_text(path / "config.yaml", commented_yaml(config))
        return folder

    @classmethod
    def existing(cls, path: Path, config: StudyConfig, *, resume: bool) -> "RunFolder | None":
        """The same run, if the folder contains it and `resume` is set; None if a new one may start."""
        content = config.model_dump(mode="json")
        if (path / "manifest.json").exists():
            run = cls.open(path)
            # A field that an earlier version did not have had its default.
            stored = {**StudyConfig().model_dump(mode="json"), **run.manifest["config"]}
            different = [k for k in content if stored.get(k) != content[k]]
            if different:
                raise RunFolderError(
                    f"{path} contains another run ({', '.join(different)} differs): choose another --out."
                )
            if not resume:
                state = "a finished" if run.finished else "an unfinished"
                raise RunFolderError(
                    f"{path} contains {state} run of this configuration: continue with --resume, or choose "
                    "another --out."
                )
            return run
        if path.exists() and (not path.is_dir() or _has_other_files(path)):
            raise RunFolderError(f"{path} is not an empty folder and contains no run: choose another --out.")
        return None

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run; the labels and looks of its methods become known in this process."""
        if not (path / "manifest.json").is_file():
            raise RunFolderError(
                f"{path} is not a run folder: it has no manifest.json. Make one with 'ot-lens run'."
            )
        from ot_lens.transport.methods import Method, restore

        manifest = read_manifest(path)
        restore([{**record, "order": Method.order} for record in manifest.get("methods", ())])
        return cls(path, manifest)

    @property
    def config(self) -> StudyConfig:
        """The configuration of the run."""
        return parse_config(self.manifest["config"], f"{self.path}/manifest.json")

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        return bool(self.manifest.get("finished"))

    @property
    def measured(self) -> bool:
        """Whether everything that needs the model is done, so that only figures and report are left."""
        return bool(self.manifest.get("measured"))

    def save_manifest(self, **entries: Any) -> None:
        """Add entries to the manifest and write it."""
        manifest = {**self.manifest, **entries}
        manifest["sha256"] = manifest_hash(manifest)
        # As it is read back, with sorted keys: the report must not depend on whether the run was stopped.
        self.manifest = json.loads(json.dumps(manifest, sort_keys=True))
        files.write_json(self.path / "manifest.json", self.manifest)

    def _table(self, name: str) -> Path:
        return self.path / "tables" / f"{name}.parquet"

    def has_table(self, name: str) -> bool:
        """Whether a table was written."""
        return self._table(name).is_file()

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as parquet."""
        with files.atomic_path(self._table(name)) as temporary:
            table.to_parquet(temporary, index=False)

    def drop(self, parts: str) -> None:
        """Remove a folder of partial tables."""
        folder = self.path / "tables" / parts
        if folder.is_dir():
            with files.writing(folder):
                shutil.rmtree(folder)

    def read_table(self, name: str) -> pd.DataFrame:
        """Read a table."""
        path = self._table(name)
        try:
            return read_table_file(path)
        except FileNotFoundError as error:
            raise RunFolderError(f"{path} is missing: complete the run with --resume.") from error

    @property
    def table_names(self) -> list[str]:
        """Names of the finished tables, without those that are being written."""
        return sorted(path.stem for path in (self.path / "tables").glob("[!.]*.parquet"))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every finished table by name."""
        return {name: self.read_table(name) for name in self.table_names}


def _first_manifest(config: StudyConfig) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA,
        "finished": False,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
        "source_sha256": source_hash(),
        "machine": machine(),
        "seeds": seeds(config),
    }


def _has_other_files(folder: Path) -> bool:
    """Whether a folder has more than what a run leaves that was killed before it wrote its manifest."""
    ours = {folder / files.LOCK, *files.temporaries(folder)}
    return any(path not in ours for path in folder.iterdir())


def read_table_file(path: Path) -> pd.DataFrame:
    """A table as it was written; raises a `RunFolderError` if the values of a column do not fit its name."""
    table = read_frame(read_bounded(path, MAX_BYTES, RunFolderError), str(path), RunFolderError)
    for name in table.columns:
        column, named = table[name], name in NAMED.get(path.stem, ())
        if not named and name in (*WHOLE, *NUMBERS) and not _holds_numbers(column, whole=name in WHOLE):
            kind = f"whole numbers up to {LARGEST}" if name in WHOLE else "numbers"
            raise RunFolderError(f"{path}: column {name!r} does not contain {kind}: restore the table.")
        if (named or name in TEXTS) and not _holds_text(column):
            raise RunFolderError(
                f"{path}: column {name!r} does not contain short plain text: restore the table."
            )
        if CONTROL.search(str(name)) or len(str(name)) > LONGEST:
            raise RunFolderError(f"{path}: no column is named {quoted(name)}: restore the table.")
    return table


def _holds_numbers(column: "pd.Series", *, whole: bool) -> bool:
    if column.isna().all():
        return True
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        return False
    known = column.to_numpy(dtype=np.float64, na_value=np.nan)
    known = known[~np.isnan(known)]
    return not whole or bool((np.abs(known) <= LARGEST).all() and (known == np.floor(known)).all())


def _holds_text(column: "pd.Series") -> bool:
    known = column.dropna()
    return all(isinstance(v, str) and len(v) <= LONGEST and not CONTROL.search(v) for v in known.unique())
