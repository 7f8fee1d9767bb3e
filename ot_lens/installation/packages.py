"""Versions of Python and of the packages, as their metadata state them: nothing is imported."""

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Final

from packaging.requirements import Requirement

from ot_lens.installation.findings import EXTRA, VERSIONS, Finding

PACKAGE: Final = "ot_lens"
# What each extra for users gives.
EXTRAS: Final = {
    "page": "the page of a run (ot-lens explore)",
    "hub": "prompts from Hugging Face datasets",
    "capability": "capability tasks, by lm-eval",
    "ray": "several GPUs or machines (--executor ray)",
    "gguf": "models in GGUF files, SmolLM2's among them",
    "peft": "adapters, those of SmolLM2 among them",
    "quantization": "weights in 8 or 4 bits, by bitsandbytes",
    "notebooks": "running the notebooks",
}
_PYTHON: Final = re.compile(r"Programming Language :: Python :: (3\.\d+)")


def installed(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(extra: str = "") -> list[Requirement]:
    """What the core requires on this platform, or what an extra adds to it."""
    needs = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    core = [need for need in needs if _applies(need, "")]
    return core if not extra else [need for need in needs if need not in core and _applies(need, extra)]


def _applies(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def version_findings() -> Iterator[Finding]:
    """ot_lens, Python and each package of the core: whether they are installed, and of a tested version."""
    yield Finding(VERSIONS, PACKAGE, metadata.version(PACKAGE))
    yield _python()
    for need in requirements():
        found = installed(need.name)
        if found is None:
            yield Finding(VERSIONS, need.name, "not installed", "broken", f"pip install '{need}'")
        else:
            yield _within(need, found)


def extra_findings() -> Iterator[Finding]:
    """Each extra for users, with what it gives, and packages of it outside their tested bounds."""
    for extra, gives in EXTRAS.items():
        versions = {need: installed(need.name) for need in requirements(extra)}
        if None in versions.values():
            yield Finding(EXTRA, extra, gives, "absent", f"pip install 'ot-lens[{extra}]'")
            continue
        yield Finding(EXTRA, extra, gives)
        within = [_within(need, found) for need, found in versions.items() if found is not None]
        yield from (one for one in within if one.state != "ok")


def _python() -> Finding:
    found = platform.python_version()
    classifiers = metadata.metadata(PACKAGE).get_all("Classifier") or ()
    tested = [match[1] for match in map(_PYTHON.fullmatch, classifiers) if match]
    if found.rpartition(".")[0] in tested:
        return Finding(VERSIONS, "python", found)
    return Finding(
        VERSIONS,
        "python",
        found,
        "doubtful",
        f"ot_lens is made for Python {', '.join(tested)}: use one of them",
    )


def _within(need: Requirement, found: str) -> Finding:
    if need.specifier.contains(found, prereleases=True):
        return Finding(VERSIONS, need.name, found)
    wanted = f"{need.name}{need.specifier}"
    return Finding(
        VERSIONS, need.name, found, "doubtful", f"pip install '{wanted}', the bounds that are tested"
    )
