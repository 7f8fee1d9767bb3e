"""What a manifest records besides the configuration: versions, platform, seeds and file hashes."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ot_lens.io.files import LOCK, sha256_file
from ot_lens.study.config import StudyConfig

# Packages that affect a number of a run, or draw it.
PACKAGES = (
    "ot_lens", "torch", "transformers", "transformer-lens", "tokenizers", "safetensors", "accelerate",
    "datasets", "numpy", "scipy", "scikit-learn", "POT", "pandas", "pyarrow", "matplotlib", "plotly",
    "ray", "bitsandbytes",
)  # fmt: skip
# Figures may be drawn again in another style; shards have their own checksums, in a file that is pinned.
NOT_HASHED = ("figures/*", "activations/*/*.safetensors", "manifest.json")


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
