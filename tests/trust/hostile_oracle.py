"""What a reader may do with a hostile file: succeed, or say what is wrong in one named error; nothing else.

A case is watched by an audit hook (no file opened for writing, nothing removed, no process, no socket, no
pickled class), by alarms, by a canary that payloads would write, and by a limit on the address space.
"""

import gc
import os
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ot_lens.errors import OtLensError

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
        self.armed = False
        self.allowed: tuple[Path, ...] = ()
        self.heard: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple) -> None:
        if not self.armed:
            return
        if event == "open":
            path, mode, flags = args
            writing = any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & WRITES)
            if writing and not self._may_write(path):
                self.heard.append(f"open {path!r} {mode} {flags}")
        elif event.startswith(FORBIDDEN) and not (args and self._may_write(args[0])):
            self.heard.append(f"{event} {args!r:.200}")

    def _may_write(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        place = os.path.realpath(os.fsdecode(path))
        return place == "/dev/null" or any(place.startswith(f"{folder}/") for folder in self.allowed)


@dataclass
class Tally:
    """What came of the cases of one reader."""

    cases: int = 0
    outcomes: Counter = field(default_factory=Counter)
    failures: list[dict] = field(default_factory=list)
    slowest: float = 0.0
    seconds: float = 0.0

    def fail(self, case: str, fault: str) -> None:
        if len(self.failures) < 40:
            self.failures.append({"case": case, "fault": fault})
        self.outcomes["FAILED"] += 1


def judged(read: Callable[[], object], watch: Watch, canary: Path) -> tuple[str, str | None]:
    """The outcome of one case: what it ended in, and what is wrong with that, or None."""
    watch.heard.clear()
    outcome, fault = "read", None
    _set_alarms(SECONDS)
    watch.armed = True
    try:
        read()
    except OtLensError as error:
        outcome, fault = type(error).__name__, _message_fault(error)
    except Hang:
        outcome, fault = (
            "hang",
            f"no end within {SECONDS} s of the processor\n{traceback.format_exc(limit=-6)}",
        )
    except BaseException as error:  # noqa: BLE001 - a panic of a Rust library is one too
        outcome, fault = type(error).__name__, f"{error!r:.300}\n{traceback.format_exc(limit=-6)}"
    finally:
        watch.armed = False
        _set_alarms(0)
    if watch.heard:
        fault = f"did what no reader does: {watch.heard[:3]}"
    if canary.exists():
        canary.unlink()
        fault = "code of the file was executed"
    return outcome, fault


def _message_fault(error: OtLensError) -> str | None:
    message = str(error)
    if not message.strip():
        return "an error without a message"
    if len(message) > LONGEST_MESSAGE:
        return f"a message of {len(message)} characters: {message[:200]}"
    return None


def limit_memory() -> None:
    """Let the address space grow by no more than MEMORY from here on."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


def peak_memory() -> int:
    """Peak resident size so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _set_alarms(seconds: float) -> None:
    """By the processor's time, which a busy machine leaves alone; and by the clock, for who waits forever."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 12 * seconds)


def _ring(*_: object) -> None:
    raise Hang


@contextmanager
def alarms():
    """Cases that do not end are ended."""
    before = {kind: signal.signal(kind, _ring) for kind in (signal.SIGALRM, signal.SIGPROF)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
