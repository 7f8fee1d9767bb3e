"""A campaign of hostile files in a process of its own, whose memory is limited: prints one JSON object.

python -m tests.trust.hostile_campaign files|models|commands --cases 5000 [--seed 0] [--reader NAME]

A reader may succeed, or say what is wrong in one named error; nothing else. A case is watched by an audit
hook (no file opened for writing, nothing removed, no process, no socket, no pickled class), by alarms, by a
canary that payloads would write, and by a limit on the address space.
"""

import argparse
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from ot_lens.errors import OtLensError
from tests.trust import hostile_cases as cases
from tests.trust.hostile_readers import Files, Reader, file_readers, model_readers

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


class Campaign:
    """All cases of the readers, one after the other, in a sandbox."""

    def __init__(self, sandbox: Path, first: int) -> None:
        self.sandbox, self.seed = sandbox, first
        self.watch = Watch()
        self.folder, self.out = sandbox / "inside", Path(tempfile.gettempdir()) / f"hostile-{os.getpid()}"

    def lay_out(self, files: Files) -> None:
        """Write the valid files, and nothing else."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, content in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)

    def run(self, reader: Reader, n: int) -> Tally:
        """n cases of a reader, and those of odd kinds of files."""
        tally, began = Tally(), time.process_time()
        self.lay_out(reader.files)
        by_structure = round(n * reader.structured) if reader.structures is not None else 0
        if reader.kinds:
            self._kinds(reader, tally)
        self._mutations(reader, n - by_structure, tally)
        if by_structure:
            self._structures(reader, by_structure, tally)
        tally.seconds = time.process_time() - began
        print(f"{reader.name}: {tally.cases} cases, {tally.seconds:.1f} s", file=sys.stderr, flush=True)
        return tally

    def _judge(self, reader: Reader, changed: Files, case: str, tally: Tally) -> None:
        """Read the files with some of them changed (already where there is no content to write)."""
        for name, content in changed.items():
            if content is not None:
                (self.folder / name).write_bytes(content)
        began = time.perf_counter()
        outcome, fault = judged(lambda: reader.read(self.folder), self.watch, self.sandbox / "canary")
        tally.slowest = max(tally.slowest, time.perf_counter() - began)
        tally.cases += 1
        tally.outcomes[outcome] += 1
        if fault is not None:
            tally.fail(f"{reader.name} {case}", fault)
        for name in changed:
            cases.remove(self.folder / name)
            (self.folder / name).write_bytes(reader.files[name])
        shutil.rmtree(self.out, ignore_errors=True)

    def _kinds(self, reader: Reader, tally: Tally) -> None:
        self._judge(reader, {}, "as it is", tally)
        if tally.outcomes != {"read": 1}:
            tally.fail(f"{reader.name}, the valid files", f"{tally.outcomes}")
        for target in reader.hostile:
            for kind, make in cases.KINDS.items():
                cases.remove(self.folder / target)
                make(self.folder / target)
                self._judge(reader, {target: None}, f"{target} {kind}", tally)

    def _mutations(self, reader: Reader, n: int, tally: Tally) -> None:
        others = list(reader.files.values())
        for i in range(n):
            draw = random.Random(f"{reader.name}:{self.seed}:{i}")
            target = reader.hostile[i % len(reader.hostile)]
            content = cases.mutated(reader.files[target], others, draw)
            self._judge(reader, {target: content}, f"mutation {i}", tally)

    def _structures(self, reader: Reader, n: int, tally: Tally) -> None:
        @seed(self.seed)
        @settings(
            max_examples=n, database=None, deadline=None, phases=[Phase.generate], verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(reader.structures)
        def each(files: Files) -> None:
            self._judge(reader, files, f"structure {tally.cases}", tally)

        each()


def _snapshot(folder: Path, without: Path) -> dict[str, tuple[int, int]]:
    outside = (path for path in folder.rglob("*") if not path.is_relative_to(without))
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in outside}


def readers_of(what: str, campaign: Campaign) -> list[Reader]:
    """The readers of a campaign; only commands may write, outside or into the run they are given."""
    if what == "commands":
        from tests.trust.hostile_commands import command_readers

        campaign.watch.allowed = (Path(tempfile.gettempdir()), campaign.folder)
        return command_readers(campaign.out)
    return {"files": file_readers, "models": model_readers}[what]()


def main() -> None:
    """Run the campaign that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["files", "models", "commands"])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", default="")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    room = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=room) as place, alarms():
        campaign = Campaign(Path(place), options.seed)
        readers = readers_of(options.what, campaign)
        weights = sum(reader.weight for reader in readers)
        readers = [reader for reader in readers if options.reader in reader.name]
        (Path(place) / "outside.txt").write_text("untouched")
        for reader in readers:  # imports may write and take memory; no case causes them
            campaign.lay_out(reader.files)
            reader.read(campaign.folder)
            shutil.rmtree(campaign.out, ignore_errors=True)
        before, memory = _snapshot(Path(place), campaign.folder), peak_memory()
        limit_memory()
        tallies = {r.name: campaign.run(r, round(options.cases * r.weight / weights)) for r in readers}
        grown = peak_memory() - memory
        untouched = _snapshot(Path(place), campaign.folder) == before
    report = {name: {**vars(tally), "outcomes": dict(tally.outcomes)} for name, tally in tallies.items()}
    print(json.dumps({"readers": report, "grown": grown, "untouched": untouched}))


if __name__ == "__main__":
    main()
