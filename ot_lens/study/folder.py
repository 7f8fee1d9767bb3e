"""The run folder: manifest, tables and maps; files are complete, and another run is never touched."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from ot_lens.errors import RunFolderError
from ot_lens.io.files import (
    LOCK,
    atomic_path,
    remove_temporaries,
    temporaries,
    write_json,
    write_text,
    writing,
)
from ot_lens.study.config import StudyConfig, commented_yaml, parse_config
from ot_lens.study.manifest_file import SCHEMA, read_manifest
from ot_lens.study.pins import machine, manifest_hash, seeds, source_hash, versions
from ot_lens.study.table_files import read_table_file


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
                remove_temporaries(entry)
        if folder is None:
            folder = cls(path, _first_manifest(config))
            folder.save_manifest()
        now, known = versions(), folder.manifest.get("resumed_with", [])
        if now not in (folder.manifest.get("versions"), *known):
            folder.save_manifest(resumed_with=[*known, now])
        if not (path / "config.yaml").is_file():
            write_text(path / "config.yaml", commented_yaml(config))
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
        write_json(self.path / "manifest.json", self.manifest)

    def _table(self, name: str) -> Path:
        return self.path / "tables" / f"{name}.parquet"

    def has_table(self, name: str) -> bool:
        """Whether a table was written."""
        return self._table(name).is_file()

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as parquet."""
        with atomic_path(self._table(name)) as temporary:
            table.to_parquet(temporary, index=False)

    def drop(self, parts: str) -> None:
        """Remove a folder of partial tables."""
        folder = self.path / "tables" / parts
        if folder.is_dir():
            with writing(folder):
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
    ours = {folder / LOCK, *temporaries(folder)}
    return any(path not in ours for path in folder.iterdir())
