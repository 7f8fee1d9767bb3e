"""Readers on hostile files: they succeed or say what is wrong in one named error, and do nothing else.

`python -m tests.trust.hostile_campaign file|model RUN FOLDER CASES` prints the outcomes of every reader.
A case is watched by an audit hook (no file opened for writing, nothing removed, no process, no socket, no
pickled class), by alarms, and by a limit on the address space.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pyarrow as pa

from ot_lens.errors import OtLensError
from tests.trust import hostile_cases as cases
from tests.trust import hostile_readers as readers
from tests.trust.hostile_readers import Files, Reader

SECONDS = 10
MEMORY = 2 * 2**30
LONGEST_MESSAGE = 4_000
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.utime", "os.setxattr", "os.mkfifo", "os.mknod", "shutil.", "os.system", "os.exec",
    "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "subprocess.Popen", "pty.spawn",
    "socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request", "ftplib.",
    "pickle.find_class", "ctypes.dlopen", "webbrowser.open", "tempfile.",
)  # fmt: skip


class Hang(BaseException):
    """The alarm of a case; no reader catches it."""


class Watch:
    """Hears, while it is armed, every forbidden thing that Python does."""

    def __init__(self) -> None:
        self.is_armed, self.heard = False, list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if not self.is_armed:
            return
        if event == "open":
            path, mode, flags = arguments
            writing = any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & WRITES)
            if writing and path != os.devnull:
                self.heard.append(f"open {path!r} {mode} {flags}")
        elif event.startswith(FORBIDDEN):
            self.heard.append(f"{event} {arguments!r:.200}")

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Fails if something forbidden happens in the block, or if it does not end."""
        _set_alarms(SECONDS)
        self.is_armed = True
        try:
            yield
        finally:
            self.is_armed = False
            _set_alarms(0)
        assert self.heard == []


def _set_alarms(seconds: float) -> None:
    """By the processor's time, which a busy machine leaves alone; and by the clock, for who waits forever."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 12 * seconds)


def _ring(*_: object) -> None:
    raise Hang


@contextmanager
def limits() -> Iterator[None]:
    """Cases that do not end are ended, and the address space grows by no more than MEMORY."""
    handlers = {kind: signal.signal(kind, _ring) for kind in (signal.SIGALRM, signal.SIGPROF)}
    space = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, space[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, space)
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


def lay_out(folder: Path, files: Files) -> Path:
    """Write files into a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def outcomes(reader: Reader, folder: Path, n: int, watch: Watch) -> Counter[str]:
    """How n hostile cases of a reader and odd kinds of its files end; whatever is not allowed is raised."""
    shutil.rmtree(folder, ignore_errors=True)
    reader.read(lay_out(folder, reader.files))  # the valid files; imports may write and take memory
    found = Counter[str]()
    for target, kind in product(reader.hostile, cases.KINDS):
        cases.remove(folder / target)
        cases.KINDS[kind](folder / target)
        found[_outcome(reader, folder, watch, f"{target} {kind}")] += 1
        cases.remove(folder / target)
        (folder / target).write_bytes(reader.files[target])
    for i in range(n):
        changed = _changed(reader, i, random.Random(f"{reader.name}:{i}"))
        for name, content in changed.items():
            (folder / name).write_bytes(content)
        found[_outcome(reader, folder, watch, f"case {i}")] += 1
        for name in changed:
            (folder / name).write_bytes(reader.files[name])
    return found


def _outcome(reader: Reader, folder: Path, watch: Watch, case: str) -> str:
    print(f"{reader.name}, {case}")  # shown where one fails
    outcome, message = "read", "none"
    with watch.armed():
        try:
            reader.read(folder)
        except OtLensError as error:
            outcome, message = type(error).__name__, str(error)
    assert message.strip()
    assert len(message) <= LONGEST_MESSAGE
    return outcome


def _changed(reader: Reader, i: int, draw: random.Random) -> Files:
    if reader.structures is not None and i % 2:
        return reader.structures(draw)
    target = reader.hostile[i // 2 % len(reader.hostile)]
    return {target: cases.mutated(reader.files[target], list(reader.files.values()), draw)}


if __name__ == "__main__":
    kind, run, folder, cases_each = sys.argv[1:]
    pa.set_memory_pool(pa.system_memory_pool())  # the default one reserves address space, which is limited
    every, watch = getattr(readers, f"{kind}_readers")(Path(run)), Watch()
    with limits():
        ended = {r.name: outcomes(r, Path(folder), int(cases_each), watch) for r in every}
    print(json.dumps(ended))
