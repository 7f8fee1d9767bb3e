"""Processes below another one, as Linux lists them."""

import time
from contextlib import suppress
from pathlib import Path


def parents() -> dict[int, int]:
    """The parent of every live process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    found[int(entry.name)] = int(parent)
    return found


def descendants(root: int) -> set[int]:
    """All processes below one."""
    parent = parents()

    def is_below(pid: int) -> bool:
        while pid in parent:
            pid = parent[pid]
            if pid == root:
                return True
        return False

    return {pid for pid in parent if is_below(pid)}


def workers(root: int) -> set[int]:
    """Ray's workers below a process."""
    found = set()
    for pid in descendants(root):
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith("ray::RayWorker"):
                found.add(pid)
    return found


def alive_after(pids: set[int], seconds: float) -> int:
    """How many of some processes are left after a while."""
    until = time.monotonic() + seconds
    while pids & parents().keys() and time.monotonic() < until:
        time.sleep(0.5)
    return len(pids & parents().keys())
