"""The run folder: manifest, tables, maps; whole files only, and never another run's."""

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
from ot_lens.study.config import StudyConfig, commented_yaml
from ot_lens.study.manifest_file import SCHEMA, read_manifest
from ot_lens.study.pins import machine, manifest_hash, seeds, source_hash, versions
from ot_lens.study.table_files import read_table_file


class RunFolder:
    """A run on disk.

    Attributes:
        path: The folder.
        manifest: What the run is of, and whether it finished.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def start(cls, path: Path, config: StudyConfig, *, resume: bool) -> "RunFolder":
        """Open a folder for a run: a new one, or with `resume` one that holds this same run.

        Whoever writes into it holds it (see `ot_lens.io.files.locked`); what killed writers left is removed.

        Raises:
            RunFolderError: If the folder holds another run, other files, or this run without `resume`.
        """
        held = cls.held(path, config, resume=resume)
        for entry in (path, *path.rglob("*")):
            if entry.is_dir():
                remove_temporaries(entry)
        if held is not None:
            held._write_configuration(config)
            held._note_versions()
            return held
        manifest = {
            "schema_version": SCHEMA,
            "finished": False,
            "config": config.model_dump(mode="json"),
            "versions": versions(),
            "source_sha256": source_hash(),
            "machine": machine(),
            "seeds": seeds(config),
        }
        folder = cls(path, manifest)
        folder.save_manifest()
        folder._write_configuration(config)
        return folder

    @classmethod
    def held(cls, path: Path, config: StudyConfig, *, resume: bool) -> "RunFolder | None":
        """This same run, where a folder holds it and `resume` allows to go on; None where a new one may go.

        Raises:
            RunFolderError: If the folder holds another run, other files, or this run without `resume`.
        """
        content = config.model_dump(mode="json")
        if (path / "manifest.json").exists():
            found = cls.open(path)
            # A field that an earlier version did not know had its default.
            stored = {**StudyConfig().model_dump(mode="json"), **found.manifest.get("config", {})}
            different = [k for k in content if stored.get(k) != content[k]]
            if different:
                raise RunFolderError(
                    f"{path} holds another run ({', '.join(different)} differs): "
                    "choose another folder with --out."
                )
            if not resume:
                state = "a finished" if found.finished else "an unfinished"
                raise RunFolderError(
                    f"{path} holds {state} run of this configuration: go on with --resume, "
                    "or choose another --out."
                )
            return found
        if path.exists() and (not path.is_dir() or _foreign(path)):
            raise RunFolderError(f"{path} is not an empty folder and holds no run: choose another --out.")
        return None

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run.

        Raises:
            RunFolderError: If the folder holds no run, one of another schema, or a link.
        """
        if not (path / "manifest.json").is_file():
            raise RunFolderError(
                f"{path} is no run folder: it has no manifest.json. Make one with 'ot-lens run'."
            )
        return cls(path, read_manifest(path))

    @property
    def finished(self) -> bool:
        """Whether the run went through to the end."""
        return bool(self.manifest.get("finished"))

    @property
    def measured(self) -> bool:
        """Whether all that needs the model was done, and only figures and report are left."""
        return bool(self.manifest.get("measured"))

    def save_manifest(self, **entries: Any) -> None:
        """Add entries to the manifest and write it."""
        manifest = {**self.manifest, **entries}
        manifest["sha256"] = manifest_hash(manifest)
        # As it is read back, keys in order: a report does not show whether the run was stopped on the way.
        self.manifest = json.loads(json.dumps(manifest, sort_keys=True))
        write_json(self.path / "manifest.json", self.manifest)

    def _note_versions(self) -> None:
        """Versions that went on with a run, where they are not those that began it."""
        now, known = versions(), self.manifest.get("resumed_with", [])
        if now not in (self.manifest.get("versions"), *known):
            self.save_manifest(resumed_with=[*known, now])

    def _write_configuration(self, config: StudyConfig) -> None:
        """For the reader; missing where the run was killed right after its manifest."""
        path = self.path / "config.yaml"
        if not path.is_file():
            write_text(path, commented_yaml(config))

    def has_table(self, name: str) -> bool:
        """Whether a table was written."""
        return (self.path / "tables" / f"{name}.parquet").is_file()

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as parquet."""
        with atomic_path(self.path / "tables" / f"{name}.parquet") as temporary:
            table.to_parquet(temporary, index=False)

    def drop(self, parts: str) -> None:
        """Remove a folder of tables that went into another."""
        folder = self.path / "tables" / parts
        if folder.is_dir():
            with writing(folder):
                shutil.rmtree(folder)

    def read_table(self, name: str) -> pd.DataFrame:
        """Read a table.

        Raises:
            RunFolderError: If it is missing or damaged.
        """
        path = self.path / "tables" / f"{name}.parquet"
        try:
            return read_table_file(path)
        except FileNotFoundError as error:
            raise RunFolderError(f"{path} is missing: complete the run with --resume.") from error

    @property
    def table_names(self) -> list[str]:
        """The finished tables; what a writer is still at, or left when it was killed, is none."""
        return sorted(path.stem for path in (self.path / "tables").glob("[!.]*.parquet"))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every finished table by name."""
        return {name: self.read_table(name) for name in self.table_names}


def _foreign(folder: Path) -> bool:
    """Whether a folder holds more than a run leaves that was killed before its manifest was there."""
    ours = {folder / LOCK, *temporaries(folder)}
    return any(path not in ours for path in folder.iterdir())
