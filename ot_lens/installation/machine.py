"""The machine: memory, threads, disk, devices, the model hub."""

import os
import shutil
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ot_lens.installation.findings import MACHINE, Finding

GIB: Final = 2**30
HUB: Final = "https://huggingface.co"
PATIENCE: Final = 3.0  # seconds
OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE: Final = ("1", "ON", "YES", "TRUE")


def machine_findings(folder: Path) -> Iterator[Finding]:
    """What needs none of the core's packages: the folder of runs, the model hub, a browser for tests."""
    yield run_folder_finding(folder)
    yield hub_finding()
    yield browser_finding()


def capacity_findings() -> Iterator[Finding]:
    """Memory, threads and devices, by psutil and torch."""
    from psutil import virtual_memory

    memory = virtual_memory()
    yield Finding(
        MACHINE, "memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    )
    yield threads_finding()
    yield device_finding()


def run_folder_finding(folder: Path) -> Finding:
    """Whether runs can be written, tried with a temporary file in the nearest folder that exists."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    try:
        with TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free
    except OSError as error:
        fault = f"{folder}: {error.strerror or error}"
        return Finding(MACHINE, "run folder", fault, "doubtful", "give another folder with --out")
    return Finding(MACHINE, "run folder", f"{folder}: writable, {free / GIB:.0f} GiB free")


def hub_finding() -> Finding:
    """Whether models and datasets can be fetched by name; in offline mode nothing is asked."""
    chosen = next((name for name in OFFLINE if os.environ.get(name, "").upper() in TRUE), None)
    if chosen is not None:
        return Finding(MACHINE, "model hub", f"offline mode ({chosen}={os.environ[chosen]})")
    address = os.environ.get("HF_ENDPOINT", HUB)
    if reachable(address):
        return Finding(MACHINE, "model hub", f"{address} answers")
    return Finding(
        MACHINE,
        "model hub",
        f"{address} does not answer",
        "absent",
        "hub names work for models that are cached; folders, GGUF files and the embedded models always do",
    )


def reachable(address: str) -> bool:
    """Whether a server answers within a few seconds, with whatever status."""
    if not address.startswith(("http://", "https://")):
        return False
    try:
        with urlopen(Request(address, method="HEAD"), timeout=PATIENCE):  # noqa: S310  its scheme is checked
            return True
    except HTTPError:
        return True
    except (OSError, HTTPException):
        return False


def browser_finding() -> Finding:
    """Chromium, which only the tests of the page need."""
    path = shutil.which("chromium")
    if path is not None:
        return Finding(MACHINE, "chromium", path)
    remedy = "only the tests of the page need it: apt-get install chromium"
    return Finding(MACHINE, "chromium", "not found", "absent", remedy)


def threads_finding() -> Finding:
    """How many threads torch uses of the processor's cores."""
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    found = f"{threads} on {cores} cores"
    if threads <= cores:
        return Finding(MACHINE, "threads", found)
    return Finding(MACHINE, "threads", found, "doubtful", f"set OMP_NUM_THREADS to at most {cores}")


def device_finding() -> Finding:
    """The device that models are loaded to by default."""
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(card) for card in range(torch.cuda.device_count())]
        found = ", ".join(f"{card.name} ({card.total_memory / GIB:.0f} GiB)" for card in cards)
        return Finding(MACHINE, "device", found)
    if torch.backends.mps.is_available():
        return Finding(MACHINE, "device", "Apple's MPS")
    if shutil.which("nvidia-smi") is not None:
        remedy = "install a build of torch for this GPU: https://pytorch.org/get-started/locally/"
        return Finding(
            MACHINE, "device", "CPU; torch sees no GPU, but nvidia-smi is here", "doubtful", remedy
        )
    return Finding(MACHINE, "device", "CPU; torch sees no GPU")
