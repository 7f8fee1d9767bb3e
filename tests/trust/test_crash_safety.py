"""A run that is killed, interrupted, out of room or not allowed to write: nothing is lost, nothing left over.

Every disturbed run is resumed to its end and compared, byte by byte, with one that was never disturbed.
"""

import os
import random
import re
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

from tests.trust.kill_harness import ALONE, JOINED, ROOT, Study, Zygote, contents, left_over, write_study
from tests.trust.kill_zygote import alive_after, descendants

STAGES = ("load", "filter", "capture", "fit", "sweep", "geometry", "draw")
# Kills of one run, in the order of the stages so that each gets its turn.
KILLED = ("load", "filter", "capture", "capture", "fit", "fit", "sweep", "sweep", "geometry", "draw")


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


@dataclass
class Whole:
    """A run that was never disturbed."""

    contents: dict[str, bytes]
    times: Counter[str]
    changes: Counter[str]
    seconds: dict[str, float]


@pytest.fixture(scope="module")
def whole(zygote: Zygote, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    study = Study(zygote, config, tmp_path_factory.mktemp("whole") / "run")
    ended = study.go()
    assert ended["status"] == 0, ended["stderr"]
    begun = {words[1]: float(words[2]) for words in study.noted if words[0] == "stage"}
    moments = [*begun.values(), begun["draw"] + 2]
    return Whole(
        contents(study.run),
        study.times(),
        Counter(words[1] for words in study.noted if words[0] == "change"),
        {stage: later - begun[stage] for stage, later in zip(begun, moments[1:], strict=True)},
    )


@pytest.fixture(scope="module")
def cluster(full_size: bool) -> Iterator[tuple[str, int]]:
    """Address and process of a cluster that outlives its drivers."""
    if not full_size:
        pytest.skip("starts a cluster; tests/test_execution.py kills workers and drivers: run with --full")
    held = subprocess.Popen(
        [sys.executable, "-m", "tests.trust.kill_cluster", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **ALONE},
    )
    assert held.stdout is not None
    yield held.stdout.readline().strip(), held.pid
    held.communicate(timeout=60)


def some_moment(chance: random.Random, stage: str, whole: Whole, shrink: float = 1.0) -> dict[str, Any]:
    """A random moment of a stage, or a random access to the run folder in it."""
    # The filter takes no longer than delays are uncertain.
    if stage != "filter" and chance.random() < 0.5:
        return {"stage": stage, "delay": chance.uniform(0, 0.8 * shrink * whole.seconds[stage])}
    return {"stage": stage, "access": chance.randint(1, max(1, round(shrink * whole.changes[stage])))}


def check_whole(study: Study, whole: Whole) -> None:
    """The bytes of an undisturbed run, and nothing else."""
    found = contents(study.run)
    assert found.keys() == whole.contents.keys()
    assert [name for name in found if found[name] != whole.contents[name]] == []
    assert left_over(study.run) == []


def killed(study: Study, whole: Whole, chance: random.Random, stages: Sequence[str]) -> Counter[str]:
    """Kill a run in the stages given, resume it to its end; counts the kills by the stage that they hit."""
    hits: Counter[str] = Counter()
    for stage in stages:
        moment = some_moment(chance, stage, whole, 0.5 if stage in ("capture", "sweep") else 1.0)
        ended = study.go(signal=signal.SIGKILL, **moment)
        assert ended["orphans"] == 0
        if ended["status"] == 0:
            return hits
        assert ended["status"] == -signal.SIGKILL, ended["stderr"]
        hits[ended["stage"]] += 1
    ended = study.go()
    assert ended["status"] == 0, ended["stderr"]
    return hits


# What is computed in each stage, and how much of it one kill may have computed again: on a worker what it is
# at and what is on its way from it, of candidates a unit of four; "walk" is one a unit and class of prompts.
REPEATED = {
    "local": (
        ("filter", "filter", 1),
        ("shard", "capture", 1),
        ("sequential", "fit", 1),
        ("search", "fit", 1),
        ("measure_baseline", "sweep", 1),
        ("candidate", "sweep", 1),
        ("walk", "sweep", 2),
        ("capture", "geometry", 1),
    ),
    "ray": (
        ("filter", "filter", 2),
        ("shard", "capture", 2),
        ("sequential", "fit", 2),
        ("search", "fit", 2),
        ("measure_baseline", "sweep", 1),
        ("candidate", "sweep", 8),
        ("walk", "sweep", 4),
        ("capture", "geometry", 1),
    ),
}


def check_repeated(
    study: Study, whole: Whole, hits: Counter[str], worst: Counter[str], executor: str
) -> None:
    """At most one piece of work is done twice a kill."""
    for what, stage, most in REPEATED[executor]:
        times = study.times()
        repeated = sum(n - whole.times[name] for name, n in times.items() if name.split()[0] == what)
        assert what in {name.split()[0] for name in whole.times}
        assert repeated <= most * hits[stage]
        worst[f"{what}, of {hits[stage]} kills"] = max(worst[f"{what}, of {hits[stage]} kills"], repeated)


def test_killed_runs_end_as_if_they_had_not_been(zygote, config, whole, tmp_path, full_size, record_property):
    chance = random.Random(0)
    hits: Counter[str] = Counter()
    worst: Counter[str] = Counter()
    wanted = 48 if full_size else len(KILLED)
    while hits.total() < wanted or set(hits) != set(STAGES):
        study = Study(zygote, config, tmp_path / "run")
        here = killed(study, whole, chance, KILLED)
        check_whole(study, whole)
        check_repeated(study, whole, here, worst, "local")
        hits += here
        study.remove()
    record_property("kills", dict(hits))
    record_property("repeated_at_most", dict(worst))


# ------------------------------------------------------------------------------------------- Ctrl-C, SIGTERM


def interrupted(study: Study, moment: dict[str, Any], number: int) -> float | None:
    """Interrupt a run; the seconds it took to end, or None where it ended before."""
    ended = study.go(signal=number, **moment)
    assert ended["orphans"] == 0
    if ended["status"] == 0:
        return None
    assert ended["status"] == 128 + number, ended
    assert "Traceback" not in ended["stderr"]
    said = [line for line in ended["stderr"].splitlines() if line.startswith("ot-lens: ")]
    resume = (
        f"ot-lens run {study.config} --out {study.run}{''.join(f' {x}' for x in study.executor)} --resume"
    )
    if (study.run / "manifest.json").is_file():
        kept = f"all measurements so far are in {study.run}"
        assert said == [f"ot-lens: interrupted: {kept}; continue with: {resume}"]
    else:
        assert said == ["ot-lens: interrupted before anything was measured: nothing was written."]
    return float(ended["took"])


# Signal, stage, and what else: to the whole group as a terminal does, or a second one on its heels.
INTERRUPTIONS = (
    (signal.SIGINT, "load", {}),
    (signal.SIGTERM, "capture", {}),
    (signal.SIGINT, "fit", {"group": True}),
    (signal.SIGINT, "sweep", {"again": 0.02}),
    (signal.SIGTERM, "sweep", {"again": 0.02}),
    (signal.SIGINT, "geometry", {}),
    (signal.SIGINT, "draw", {}),
)


def test_an_interruption_ends_within_two_seconds_and_says_how_to_go_on(
    zygote, config, whole, tmp_path, full_size, record_property
):
    chance = random.Random(1)
    took: list[float] = []
    for _ in range(4 if full_size else 1):
        study = Study(zygote, config, tmp_path / "run")
        for number, stage, how in INTERRUPTIONS:
            delay = chance.uniform(0, 0.5 * whole.seconds[stage])
            seconds = interrupted(study, {"stage": stage, "delay": delay, **how}, number)
            took += [] if seconds is None else [seconds]
        assert study.go()["status"] == 0
        check_whole(study, whole)
        study.remove()
    record_property("interruptions", len(took))
    record_property("seconds_to_end", {"median": statistics.median(took), "max": max(took)})
    assert len(took) >= len(INTERRUPTIONS) - 2
    assert max(took) < 2


@pytest.mark.parametrize(
    ("what", "statement"),
    [
        ("a call of C that hears of nothing", "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"),
        ("a library that takes the exception for its own", "forever()"),
        ("a finalizer, out of which no exception leads", "Finalized(); forever()"),
    ],
)
def test_an_interruption_needs_no_help_of_what_is_being_computed(what, statement):
    code = f"""
import hashlib, time
from ot_lens.cli.interruption import interruptible

def forever():
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass

class Finalized:
    def __del__(self):
        print("begun", flush=True)
        while True:
            time.sleep(60)

with interruptible(lambda: "kept"):
    print("begun", flush=True)
    {statement}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert time.monotonic() - begun < 2
    assert process.returncode == 143
    assert said.strip() == "ot-lens: kept"


# --------------------------------------------------------------------------------- no room, no right to write


def complaint(ended: dict[str, Any]) -> str:
    """The one line that a command ends with which Cannot write."""
    assert ended["status"] == 2, ended
    assert "Traceback" not in ended["stderr"]
    (said,) = [line for line in ended["stderr"].splitlines() if line.startswith("ot-lens: ")]
    return said


# Files that grow, or are written anew at every stage.
CHANGING = ("manifest.json", "shards.sha256", ".lock")


def check_kept(before: dict[str, bytes], study: Study) -> None:
    """All that was there before is there still."""
    after = contents(study.run)
    lost = {
        name
        for name, content in before.items()
        if after.get(name) != content
        and Path(name).name not in CHANGING
        and not {*JOINED} & {*Path(name).parts}
    }
    assert not lost
    if any("parts" in Path(name).parts for name in before):
        assert "tables/localization.parquet" in after or {
            n for n in before if "parts" in Path(n).parts
        } <= set(after)
    assert [name for name in left_over(study.run) if not name.endswith(JOINED)] == []


def rooms(whole: Whole, some: int) -> list[int]:
    """Sizes of a disk that end in the midst of each part of a run, ascending, in bytes."""
    order = ("manifest.json", "activations", "maps", "completions", "tables", "figures", "report.html")
    sizes = [
        sum(-(-len(c) // 4096) * 4096 + 4096 for name, c in whole.contents.items() if name.startswith(part))
        for part in order
    ]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    found = [start + max(4096, int(size * 0.4)) for start, size in zip(starts, sizes, strict=True)]
    return found if some >= len(found) else [found[i] for i in range(1, len(found), -(-len(found) // some))]


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[str], None] | None]:
    """A small disk at a folder; yields what mounts it anew with other options, or None where none may."""
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
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_loses_nothing_and_the_run_goes_on_once_there_is_room(
    zygote, config, whole, tmp_path, full_size, record_property
):
    sizes = rooms(whole, 10 if full_size else 3)
    failed = []
    with disk(tmp_path / "disk", sizes[0]) as remount:
        study = Study(zygote, config, tmp_path / "disk" / "run", log=tmp_path / "log")
        # Where no disk may be mounted, the largest file is limited, which fails at fewer places.
        limits = sizes if remount is not None else [10_000, 100_000]
        for limit in limits:
            before = contents(study.run) if study.run.exists() else {}
            if remount is not None:
                remount(f"size={limit}")
            ended = study.go(**({} if remount is not None else {"limit": limit}))
            said = complaint(ended)
            assert re.search(
                r"Cannot write \S+: (No space left on device|File too large); free some space\.", said
            )
            if study.started:
                assert said.endswith(f"--out {study.run} --resume") or not before
            check_kept(before, study)
            failed.append(ended["stage"])
        if remount is not None:
            remount("size=100m")
        ended = study.go()
        assert ended["status"] == 0, ended["stderr"]
        check_whole(study, whole)
    record_property("failed_in", failed)
    assert len(set(failed)) >= 2


def test_a_read_only_folder_is_said_and_left_as_it_is(zygote, config, whole, tmp_path):
    with disk(tmp_path / "disk", 100 * 2**20) as remount:
        study = Study(zygote, config, tmp_path / "disk" / "run", log=tmp_path / "log")
        assert study.go(signal=signal.SIGKILL, stage="sweep", access=20)["status"] == -signal.SIGKILL
        before = contents(study.run)
        with only_readable(study.run):
            assert "Cannot write" in complaint(study.go(powerless=True))
        assert contents(study.run) == before
        if remount is not None:
            remount("ro")
            assert "Cannot write" in complaint(study.go())
            assert contents(study.run) == before
            remount("rw")
        assert study.go()["status"] == 0
        check_whole(study, whole)
        if remount is not None:
            remount("ro")
            assert study.go()["status"] == 0, "a finished run is shown from a disk that cannot be written"
            remount("rw")


@contextmanager
def only_readable(folder: Path) -> Iterator[None]:
    """Without the right to write, for who has not all rights."""
    held = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in held:
        path.chmod(0o555)
    yield
    for path in held:
        path.chmod(0o755)


# ----------------------------------------------------------------------------------------------- on a cluster


def on(cluster: tuple[str, int]) -> tuple[str, ...]:
    return ("--executor", "ray", "--address", cluster[0])


def without_executors(found: dict[str, bytes]) -> dict[str, bytes]:
    """The manifest and the report name the engines."""
    return {name: content for name, content in found.items() if name not in ("manifest.json", "report.html")}


# Who is killed in each run: the driver in a stage, or the worker in the sweep, which its driver outlives.
ON_A_CLUSTER = (
    ("sweep", "worker"),
    ("capture", "fit", "sweep", "worker"),
    ("load", "filter", "capture", "fit", "worker"),
    ("sweep", "geometry", "draw"),
)


@pytest.mark.trust
def test_drivers_and_workers_that_are_killed_on_a_cluster_leave_no_trace(
    zygote, config, whole, cluster, tmp_path, record_property
):
    chance = random.Random(2)
    hits: Counter[str] = Counter()
    workers = 0
    worst: Counter[str] = Counter()
    for stages in ON_A_CLUSTER:
        study = Study(zygote, config, tmp_path / "run", on(cluster))
        here: Counter[str] = Counter()
        for stage in stages:
            if stage == "worker":
                ended = study.go(signal=signal.SIGKILL, stage="sweep", delay=0.1, worker=cluster[1])
                assert (ended["status"], ended["sent"]) == (0, True), ended["stderr"]
                workers += 1
            else:
                moment = {"stage": stage, "delay": chance.uniform(0, 0.5 * whole.seconds[stage])}
                ended = study.go(signal=signal.SIGKILL, **moment)
                assert ended["status"] == -signal.SIGKILL, ended["stderr"]
                hits[ended["stage"]] += 1
            here[ended["stage"] if stage != "worker" else "sweep"] += 1
        assert study.go()["status"] == 0
        check_repeated(study, whole, here, worst, "ray")
        assert without_executors(contents(study.run)) == without_executors(whole.contents)
        assert left_over(study.run) == []
        study.remove()
    record_property("drivers_killed", dict(hits))
    record_property("workers_killed", workers)
    record_property("repeated_at_most", dict(worst))
    assert hits.total() + workers >= 12


@pytest.mark.trust
def test_an_interruption_on_a_cluster_ends_as_soon(zygote, config, whole, cluster, tmp_path, record_property):
    chance = random.Random(3)
    study = Study(zygote, config, tmp_path / "run", on(cluster))
    took = []
    found = (
        (signal.SIGINT, "load"),
        (signal.SIGTERM, "capture"),
        (signal.SIGINT, "fit"),
        (signal.SIGINT, "sweep"),
    )
    for number, stage in found:
        moment = {"stage": stage, "delay": chance.uniform(0, 0.5 * whole.seconds[stage])}
        took.append(interrupted(study, moment, number))
    study.executor = ()  # the rest is done here
    assert study.go()["status"] == 0
    assert without_executors(contents(study.run)) == without_executors(whole.contents)
    record_property("seconds_to_end", {"median": statistics.median(took), "max": max(took)})
    assert max(took) < 2


@pytest.mark.trust
def test_a_cluster_of_its_own_ends_with_a_run_that_is_stopped(config, tmp_path, full_size, record_property):
    if not full_size:
        pytest.skip("starts a cluster of its own: run with --full")
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
    for number, resume in ((signal.SIGINT, []), (signal.SIGKILL, ["--resume"])):
        process = subprocess.Popen([*command, *resume], start_new_session=True, cwd=ROOT, env=environment)
        deadline = time.monotonic() + 240
        while not list(run.rglob("maps/*" if resume else "harmful-*")) and time.monotonic() < deadline:
            time.sleep(0.3)
        below = descendants(process.pid)
        sent = time.monotonic()
        process.send_signal(number)
        assert process.wait(60) == (130 if number == signal.SIGINT else -number)
        if number == signal.SIGINT:
            record_property("seconds_to_end", time.monotonic() - sent)
            assert time.monotonic() - sent < 2
        assert below
        # A worker that is just starting looks for its cluster for more than a minute.
        assert alive_after(below, 200.0) == 0
