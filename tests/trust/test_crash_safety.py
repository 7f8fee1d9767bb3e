"""A run that is killed, interrupted, out of space or not allowed to write: nothing is lost or left over.

Every disturbed run is resumed to its end and compared, byte by byte, with one that was never disturbed.
"""

import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ot_lens as otl
from ot_lens.errors import RunFolderError
from tests.conftest import NO_MECHANISMS
from tests.processes import alive_after, descendants
from tests.trust.kill_harness import ALONE, JOINED, ROOT, Study, Zygote, contents, left_over, write_study

STAGES = ("load", "filter", "capture", "fit", "sweep", "geometry", "draw")
# Kills of one run, in the order of the stages so that each gets its turn.
KILLED = ("load", "filter", "capture", "fit", "fit", "sweep", "sweep", "geometry", "draw")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, full_size: bool) -> Path:
    """A study of every stage; of its tables, some are left to `make trust`."""
    return write_study(tmp_path_factory.mktemp("study"), **({} if full_size else NO_MECHANISMS))


@dataclass
class Whole:
    """A run that was never disturbed."""

    contents: dict[str, bytes]
    times: Counter[str]
    changes: Counter[str]
    seconds: dict[str, float]

    def moment(self, chance: random.Random, stage: str, shrink: float = 1.0) -> dict[str, Any]:
        """A random time in a stage, or a random change of the run folder in it."""
        # The filter takes no longer than delays are uncertain.
        if stage != "filter" and chance.random() < 0.5:
            return {"stage": stage, "delay": chance.uniform(0, 0.8 * shrink * self.seconds[stage])}
        return {"stage": stage, "access": chance.randint(1, max(1, round(shrink * self.changes[stage])))}

    def early(self, chance: random.Random, stage: str) -> dict[str, Any]:
        """A random time in the first half of a stage."""
        return {"stage": stage, "delay": chance.uniform(0, 0.5 * self.seconds[stage])}


@pytest.fixture(scope="module")
def whole(zygote: Zygote, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    study = Study(zygote, config, tmp_path_factory.mktemp("whole") / "run")
    study.finish()
    begun = {words[1]: float(words[2]) for words in study.noted if words[0] == "stage"}
    moments = [*begun.values(), begun["draw"] + 2]
    return Whole(
        contents(study.run),
        study.times(),
        Counter(words[1] for words in study.noted if words[0] == "change"),
        {stage: later - begun[stage] for stage, later in zip(begun, moments[1:], strict=True)},
    )


# Prints its address, and ends with stdin.
CLUSTER = """
import sys
from ot_lens.execution.ray_address import start_here
ray = start_here(num_cpus=1)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that outlives its drivers."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    held = subprocess.Popen([sys.executable, "-c", CLUSTER], **pipes, cwd=ROOT, env={**os.environ, **ALONE})
    assert held.stdout is not None
    yield held.stdout.readline().strip()
    held.communicate(timeout=60)


# The manifest and the report name the executors.
NAMING_EXECUTORS = ("manifest.json", "report.html")


def check_whole(study: Study, whole: Whole, without: Sequence[str] = ()) -> None:
    """The bytes of an undisturbed run, and nothing else."""
    found = contents(study.run)
    assert found.keys() == whole.contents.keys()
    assert [name for name in found if found[name] != whole.contents[name] and name not in without] == []
    assert left_over(study.run) == []


# What is computed in each stage, and how often one kill may repeat it, here and on a cluster, where a worker
# and its driver each have one task; of candidates a batch of four, of walks one per class of prompts.
REPEATED = {
    ("filter", "filter"): (1, 2),
    ("shard", "capture"): (1, 2),
    ("sequential", "fit"): (1, 2),
    ("search", "fit"): (1, 2),
    ("measure_baseline", "sweep"): (1, 1),
    ("candidate", "sweep"): (1, 8),
    ("walk", "sweep"): (2, 4),
    ("capture", "geometry"): (1, 1),
}


def check_repeated(study: Study, whole: Whole, hits: Counter[str], *, cluster: bool = False) -> None:
    """At most one task is repeated per kill."""
    times = study.times()
    for (what, stage), most in REPEATED.items():
        names = {name for name in whole.times if name.split()[0] == what}
        assert names
        assert sum(times[name] - whole.times[name] for name in names) <= most[cluster] * hits[stage]
    assert not times.keys() - whole.times.keys()


def kill(study: Study, moment: dict[str, Any], hits: Counter[str]) -> bool:
    """Kill a run, counted by the stage that was hit; False where it had ended."""
    ended = study.go(signal=signal.SIGKILL, **moment)
    assert ended["orphans"] == 0
    if ended["status"] == 0:
        return False
    assert ended["status"] == -signal.SIGKILL, ended["stderr"]
    hits[ended["stage"]] += 1
    return True


def test_killed_runs_end_as_if_they_had_not_been(zygote, config, whole, tmp_path, full_size, record_property):
    chance = random.Random(0)
    hits: Counter[str] = Counter()
    wanted, order = (48, KILLED) if full_size else (len(STAGES), STAGES)
    while hits.total() < wanted or set(hits) != set(STAGES):
        study = Study(zygote, config, tmp_path / "run")
        here: Counter[str] = Counter()
        for stage in order:
            shrink = 0.5 if stage in ("capture", "sweep") else 1.0
            if not kill(study, whole.moment(chance, stage, shrink), here):
                break
        study.finish()
        check_whole(study, whole)
        check_repeated(study, whole, here)
        hits += here
        study.remove()
    record_property("kills", dict(hits))


CAPTURE = """
import ot_lens as otl
from tests import checkpoints
model = otl.load_model({folder!r})
otl.capture(model, checkpoints.contrast(3), positions=[-1, -2], batch_size=2, store={store!r})
"""


def test_a_capture_that_is_killed_at_any_access_to_its_store_resumes(
    zygote, llama_folder, tmp_path, full_size
):
    log = tmp_path / "log"

    def capture(store: Path, **disturbance: Any) -> int:
        code = CAPTURE.format(folder=str(llama_folder), store=str(store))
        files = {"log": str(log), "stderr": str(tmp_path / "stderr"), "watch": str(store)}
        return zygote.fork(argv=[], code=code, **files, **disturbance)["status"]

    def computed() -> list[str]:
        return [line for line in log.read_text().splitlines() if line.startswith("shard ")]

    assert capture(tmp_path / "whole") == 0
    whole, shards = contents(tmp_path / "whole"), len(computed())
    accesses = log.read_text().count("change start")
    assert accesses > 30
    store = tmp_path / "store"
    for access in range(1, accesses, 1 if full_size else 9):
        log.unlink()
        assert capture(store, signal=signal.SIGKILL, stage="start", access=access) == -signal.SIGKILL
        try:
            otl.load_activations(store).stacked("harmful", -1)
        except RunFolderError:  # a reader is told that the capture is unfinished
            pass
        else:
            assert contents(store).items() >= whole.items()
        assert capture(store) == 0
        assert contents(store) == whole, "and no temporary file and no lock is left"
        assert len(computed()) <= shards + 1
        shutil.rmtree(store)


# ------------------------------------------------------------------------------------------- Ctrl-C, SIGTERM


def interrupted(study: Study, moment: dict[str, Any], number: int) -> float | None:
    """Interrupt a run; the seconds it took to end, or None where it had ended before."""
    ended = study.go(signal=number, **moment)
    assert ended["orphans"] == 0
    if ended["status"] == 0:
        return None
    said = study.complaint(ended, 128 + number)
    if (study.run / "manifest.json").is_file():
        assert str(study.run) in said
        assert said.endswith(" ".join([f"--out {study.run}", *study.executor, "--resume"]))
    else:
        assert "nothing was written" in said
    return float(ended["took"])


# Signal, stage, and whether it goes to the whole group, as from a terminal, or a second one follows.
INTERRUPTIONS = (
    (signal.SIGINT, "load", {}),
    (signal.SIGTERM, "capture", {}),
    (signal.SIGINT, "fit", {"group": True}),
    (signal.SIGINT, "sweep", {"again": 0.02}),
    (signal.SIGTERM, "sweep", {"again": 0.02}),
    (signal.SIGINT, "geometry", {}),
    (signal.SIGINT, "draw", {}),
)


def test_an_interruption_ends_within_two_seconds_and_says_how_to_continue(
    zygote, config, whole, tmp_path, full_size, record_property
):
    chance = random.Random(1)
    took: list[float] = []
    for _ in range(4 if full_size else 1):
        study = Study(zygote, config, tmp_path / "run")
        for number, stage, options in INTERRUPTIONS:
            seconds = interrupted(study, {**whole.early(chance, stage), **options}, number)
            took += [] if seconds is None else [seconds]
        study.finish()
        check_whole(study, whole)
        study.remove()
    record_property("seconds_to_end", {"n": len(took), "median": statistics.median(took), "max": max(took)})
    assert len(took) >= len(INTERRUPTIONS) - 2
    assert max(took) < 2


STUBBORN = """
import hashlib, time
from ot_lens.cli.interruption import interruptible

def forever(_=None):
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass

class Finalized:
    __del__ = forever

with interruptible(lambda: "kept"):
    print("begun", flush=True)
    {statement}
"""


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", id="C code that ignores signals"),
        pytest.param("forever()", id="a library that swallows the exception"),
        pytest.param("Finalized()", id="a finalizer, which no exception leaves"),
    ],
)
def test_an_interruption_needs_no_help_from_the_computation(statement):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(
        [sys.executable, "-c", STUBBORN.replace("{statement}", statement)], cwd=ROOT, **pipes
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]  # the computation lasts longer
    assert process.returncode == 143
    assert said.strip() == "ot-lens: kept"


# ------------------------------------------------------------------------------- no space, no right to write

# Files that grow, or are written anew at every stage.
CHANGING = ("manifest.json", "shards.sha256", ".lock")


def check_kept(before: dict[str, bytes], study: Study) -> None:
    """All that was there before is still there."""
    after = contents(study.run)
    for name, content in before.items():
        if Path(name).name not in CHANGING and not {*JOINED} & {*Path(name).parts}:
            assert after.get(name) == content
    parts = {name for name in before if "parts" in Path(name).parts}
    assert "tables/localization.parquet" in after or parts <= set(after)
    assert [name for name in left_over(study.run) if not name.endswith(JOINED)] == []


def sizes_of_disks(whole: Whole, count: int) -> list[int]:
    """Sizes in bytes at which a disk is full in the middle of each part of a run, ascending."""
    order = ("manifest.json", "activations", "maps", "completions", "tables", "figures", "report.html")
    sizes = [
        sum(-(-len(c) // 4096) * 4096 + 4096 for name, c in whole.contents.items() if name.startswith(part))
        for part in order
    ]
    found = [sum(sizes[:i]) + max(4096, int(size * 0.4)) for i, size in enumerate(sizes)]
    return found if count >= len(found) else [found[i] for i in range(1, len(found), -(-len(found) // count))]


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[int], None] | None]:
    """A small disk at a folder; yields a function that resizes it, or None where mounting is not allowed."""
    folder.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    try:
        mount(f"size={size}")
    except (subprocess.CalledProcessError, FileNotFoundError):
        yield None
        return
    try:
        yield lambda size: mount(f"remount,size={size}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing_and_the_run_continues_once_there_is_space(
    zygote, config, whole, tmp_path, full_size, record_property
):
    sizes = sizes_of_disks(whole, 10 if full_size else 3)
    failed = []
    with disk(tmp_path / "disk", sizes[0]) as resize:
        study = Study(zygote, config, tmp_path / "disk" / "run", log=tmp_path / "log")
        # Where no disk may be mounted, the largest file is limited, which fails at fewer places.
        for limit in sizes if resize is not None else [10_000, 100_000]:
            before = contents(study.run) if study.run.exists() else {}
            if resize is not None:
                resize(limit)
            ended = study.go(**({} if resize is not None else {"limit": limit}))
            said = study.complaint(ended, 2)
            assert re.search(r"Cannot write \S+: .*(No space left on device|File too large)", said)
            assert said.endswith(f"--out {study.run} --resume") or not before
            check_kept(before, study)
            failed.append(ended["stage"])
        if resize is not None:
            resize(100 * 2**20)
        study.finish()
        check_whole(study, whole)
    record_property("failed_in", failed)
    assert len(set(failed)) >= 2


def test_a_read_only_folder_is_reported_and_left_as_it_is(zygote, config, whole, tmp_path):
    study = Study(zygote, config, tmp_path / "run")
    assert kill(study, {"stage": "sweep", "access": 20}, Counter())
    before = contents(study.run)
    with only_readable(study.run):
        assert "Cannot write" in study.complaint(study.go(powerless=True), 2)
    assert contents(study.run) == before
    study.finish()
    check_whole(study, whole)
    with only_readable(study.run):  # a finished run is shown from where nothing can be written
        study.finish(powerless=True)


@contextmanager
def only_readable(folder: Path) -> Iterator[None]:
    """Without the right to write, for users other than root."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    yield
    for path in folders:
        path.chmod(0o755)


# ----------------------------------------------------------------------------------------------- on a cluster


@pytest.mark.campaign
def test_a_driver_that_is_killed_on_a_cluster_leaves_no_trace(zygote, config, whole, cluster, tmp_path):
    """Killed workers, which their driver survives: tests/test_execution.py."""
    chance, hits = random.Random(2), Counter()
    study = Study(zygote, config, tmp_path / "run", ("--executor", "ray", "--address", cluster))
    for stage in STAGES:
        assert kill(study, whole.early(chance, stage), hits)
    study.finish()
    check_repeated(study, whole, hits, cluster=True)
    check_whole(study, whole, NAMING_EXECUTORS)


@pytest.mark.campaign
def test_a_cluster_of_its_own_ends_with_a_run_that_is_stopped(config, tmp_path, record_property):
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "ot_lens.cli",
        "run",
        str(config),
        "--out",
        str(run),
        "--executor",
        "ray",
    ]
    environment = {name: value for name, value in {**os.environ, **ALONE}.items() if value}
    for number, options, begun in (
        (signal.SIGINT, [], "harmful-*"),
        (signal.SIGKILL, ["--resume"], "maps/*"),
    ):
        process = subprocess.Popen([*command, *options], start_new_session=True, cwd=ROOT, env=environment)
        deadline = time.monotonic() + 240
        while not list(run.rglob(begun)) and time.monotonic() < deadline:
            time.sleep(0.3)
        below, sent = descendants(process.pid), time.monotonic()
        process.send_signal(number)
        assert process.wait(60) == (130 if number == signal.SIGINT else -number)
        if number == signal.SIGINT:
            record_property("seconds_to_end", time.monotonic() - sent)
        assert below
        # A worker that is just starting looks for its cluster for more than a minute.
        assert alive_after(below, 200.0) == 0
