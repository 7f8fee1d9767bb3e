"""Reading the manifest of a run: its entries have their types, and the folder contains no links."""

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ot_lens.errors import RunFolderError
from ot_lens.io.files import read_json
from ot_lens.io.untrusted import quoted

SCHEMA = 1


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    name: str = "unknown model"


class _Prompts(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    sha256: dict[str, str] = {}


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    schema_version: int = Field(ge=SCHEMA, le=SCHEMA)
    finished: bool = False
    measured: bool = False
    config: dict[str, Any]
    versions: dict[str, str | None]
    machine: dict[str, str] = {}
    seeds: dict[str, Any] = {}
    model: _Model = _Model()
    measuring: dict[str, Any] = {}
    prompts: _Prompts = _Prompts()
    executors: list[str] = []
    resumed_with: list[dict[str, str | None]] = []
    files: dict[str, str] = {}


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        RunFolderError: If it is missing, damaged or of another schema, or the folder contains a link.
    """
    path = run / "manifest.json"
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
        raise RunFolderError(f"{path} is not of schema {SCHEMA}: use the ot_lens that wrote it.")
    try:
        _Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = quoted(".".join(str(part) for part in first["loc"]))
        raise RunFolderError(f"{path} is damaged at {place} ({first['msg']}): restore it.") from error
    refuse_links(run)
    return content


def refuse_links(run: Path) -> None:
    """Refuse links inside a run folder, which could lead elsewhere; the folder itself may be a link.

    Raises:
        RunFolderError: If a file or folder in it is a link.
    """
    for folder, folders, names in os.walk(run):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink():
                raise RunFolderError(
                    f"{path} is a link, which a run folder must not contain: replace it with its target."
                )
