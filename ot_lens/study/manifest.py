"""The manifest of a run: versions, machine, seeds, hashes; read back with every entry of its type."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ot_lens.errors import RunFolderError
from ot_lens.io.files import LOCK, read_json, sha256_file
from ot_lens.io.untrusted import CONTROL, first_fault
from ot_lens.study.config import StudyConfig

SCHEMA = 1
# Packages that affect a number of a run, or draw it.
PACKAGES = (
    "ot_lens", "torch", "transformers", "transformer-lens", "tokenizers", "safetensors", "accelerate",
    "datasets", "numpy", "scipy", "scikit-learn", "POT", "pandas", "pyarrow", "matplotlib", "plotly",
    "ray", "bitsandbytes",
)  # fmt: skip
# Figures may be drawn again in another style; shards have their own checksums, in a file that is pinned.
NOT_HASHED = ("figures/*", "activations/*/*.safetensors", "manifest.json")


class _Open(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Model(_Open):
    name: str = "unknown model"


class _Prompts(_Open):
    sha256: dict[str, str] = {}


class _Method(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,79}$")
    label: str = Field(max_length=120)
    family: Literal["projection", "transport", "erasure"]
    formula: str = Field("", max_length=400)
    source: str = Field("", max_length=400)
    tokens: str = Field("auto", max_length=40)
    reversible: bool = False
    everywhere: bool = False
    group: str = Field("Other", max_length=120)
    colour: str = Field("#6A7F93", pattern=r"^#[0-9A-Fa-f]{6}$")
    marker: str = "star"
    dash: str = "dashdot"
    order: int = Field(1000, ge=0, le=10_000)
    modifiers: list[Literal["null_space", "gated", "gated_threshold", "norm_preserving"]] = []

    @model_validator(mode="after")
    def _can_be_shown(self) -> "_Method":
        from ot_lens.plots.style import DASHES, MARKERS

        if any(map(CONTROL.search, (self.label, self.formula, self.source, self.group))):
            raise PydanticCustomError("control", "it contains a control character")
        if self.marker not in MARKERS or self.dash not in DASHES:
            raise PydanticCustomError("look", "there is no such marker or dash")
        return self


class _Manifest(_Open):
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
    languages: dict[str, _Prompts] = {}
    executors: list[str] = []
    methods: list[_Method] = []
    diagnostics: list[str] = []
    resumed_with: list[dict[str, str | None]] = []
    files: dict[str, str] = {}


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run folder without links; raises a `RunFolderError` if anything is wrong with it."""
    path = run / "manifest.json"
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA:
        raise RunFolderError(f"{path} is not of schema {SCHEMA}: use the ot_lens that wrote it.")
    try:
        _Manifest.model_validate(content)
    except ValidationError as error:
        location, fault = first_fault(error)
        raise RunFolderError(f"{path} is damaged at {location!r} ({fault}): restore it.") from error
    refuse_links(run)
    return content


def refuse_links(run: Path) -> None:
    """Refuse links inside a run folder, which could lead elsewhere; the folder itself may be a link."""
    for folder, folders, names in os.walk(run):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink():
                raise RunFolderError(
                    f"{path} is a link, which a run folder must not contain: replace it with its target."
                )


def versions() -> dict[str, str | None]:
    """Versions of Python and the packages; None if one is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def source_hash() -> str:
    """SHA-256 of the Python files of ot_lens, which change between releases."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def machine() -> dict[str, str]:
    """Operating system, C library and instruction set."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip(),
    }


def seeds(config: StudyConfig) -> dict[str, Any]:
    """The seeds of a study, by use."""
    return {
        "prompts": config.seed,  # load_prompts
        "intervals": config.seed,  # PanelSettings, and the resamples of every table of geometry
        "controls": [config.seed * 1009 + draw for draw in range(config.control_draws)]  # controls
        if config.controls
        else [],
    }


def file_hashes(run: Path) -> dict[str, str]:
    """SHA-256 of the files of a run by relative path, without those that match NOT_HASHED."""
    paths = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.name != LOCK)
    return {
        path.as_posix(): sha256_file(run / path)
        for path in paths
        if not any(path.match(pattern) for pattern in NOT_HASHED)
    }


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without this entry: it reveals damage, but a forger can renew it."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
