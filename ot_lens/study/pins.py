"""What a manifest pins beside the configuration: versions, platform, seeds, and the hash of every file."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ot_lens.io.files import LOCK, sha256_file
from ot_lens.study.config import StudyConfig

# Whatever takes part in a number of a run, or draws it.
PACKAGES = (
    "ot_lens", "torch", "transformers", "transformer-lens", "tokenizers", "safetensors", "accelerate",
    "datasets", "numpy", "scipy", "scikit-learn", "POT", "pandas", "pyarrow", "matplotlib", "plotly",
    "ray", "bitsandbytes",
)  # fmt: skip
# Figures may be drawn again in another style; shards have checksums of their own, in a file that is pinned.
LEFT_OUT = ("figures/*", "activations/*/*.safetensors", "manifest.json")


def versions() -> dict[str, str | None]:
    """Of Python and of every package that takes part; None where one is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def source_hash() -> str:
    """SHA-256 of the Python files of ot_lens: between releases its version alone says too little."""
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
    """What every random number of a study starts from; see the functions named."""
    return {
        "prompts": config.seed,  # load_prompts
        "intervals": config.seed,  # PanelSettings, and the draws of every table of geometry
        "controls": [config.seed * 1009 + draw for draw in range(config.control_draws)]  # controls
        if config.controls
        else [],
    }


def file_hashes(run: Path) -> dict[str, str]:
    """SHA-256 of the files of a run by their path in it; LEFT_OUT says which are not among them."""
    found = sorted(path for path in run.rglob("*") if path.is_file() and path.name != LOCK)
    names = {path.relative_to(run).as_posix(): path for path in found}
    return {
        name: sha256_file(path)
        for name, path in names.items()
        if not any(path.relative_to(run).match(pattern) for pattern in LEFT_OUT)
    }


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without this very entry: damage shows, but whoever forges can renew it."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
