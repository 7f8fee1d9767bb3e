"""Engines: the same bytes here and on a cluster, through killed workers and a change of executor half-way."""

import json
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens.errors import BatchHalvedWarning, ExecutorError, ModelError
from ot_lens.execution import LocalExecutor, RayExecutor, open_executor, ray_cluster
from ot_lens.execution.ray_address import start_here
from ot_lens.localization import (
    Candidate,
    MethodSpec,
    candidate_batches,
    candidates,
    measure_baseline,
    measure_batches,
    sweep_settings,
)
from ot_lens.study import RunFolder, parse_config, run_study
from ot_lens.study import run as study_run
from ot_lens.transport import AffineMap

MODEL = {"model": "organism"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So that a worker takes one CPU, and two fit on the cluster of these tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> otl.ContrastSet:
    return otl.load_prompts(prompt_file(tmp_path_factory.mktemp("prompts")))


def prompt_file(folder: Path) -> Path:
    full = otl.load_prompts("organism")
    splits = {
        name: {
            label: [{"text": p.text, "answer": p.answer, "answers": p.answers} for p in group[:6]]
            for label, group in getattr(full, name)
        }
        for name in ("train", "val", "test")
    }
    path = folder / "few.json"
    path.write_text(json.dumps({"splits": splits}))
    return path


# --------------------------------------------------------------------------- without a cluster


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_nobody_at_the_address_is_said_at_once(address):
    start = time.monotonic()
    with pytest.raises(ExecutorError, match=r"no Ray cluster answers at .*ray start --head"):
        RayExecutor(MODEL, address=address)
    assert time.monotonic() - start < 10


def test_an_address_that_is_none(monkeypatch):
    for address in ("somewhere", "ray://", "host:port", ":1"):
        with pytest.raises(ExecutorError, match="is none of a Ray cluster"):
            RayExecutor(MODEL, address=address)
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    with pytest.raises(ExecutorError, match="'elsewhere' is none"):
        RayExecutor(MODEL)


def test_what_an_engine_needs_is_said(monkeypatch):
    with (
        pytest.raises(ExecutorError, match="no executor 'spark': choose one of local, ray"),
        open_executor("spark", {}),
    ):
        pass
    with (
        pytest.raises(ExecutorError, match="add --executor ray"),
        open_executor("local", MODEL, address="h:1"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r"pip install 'ot-lens\[ray\]'"), open_executor("ray", MODEL):
        pass


@pytest.fixture(scope="module")
def sweep(prompts: otl.ContrastSet):
    """A model, its units and what each of their candidates measures."""
    model = otl.load_model("organism")
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.randn(96, 2, generator=generator, dtype=torch.float64) / 3 for _ in range(2))
    maps = {layer: AffineMap(U * (layer + 1), V, torch.zeros(96, dtype=torch.float64)) for layer in range(6)}
    found = candidates({MethodSpec("pca_ot", {"k": 2}): maps}, 8, ["single", "pair"])
    measures = ["refusal_score", "kl", "refusal_rate"]
    settings = sweep_settings(model, measures, batch_size=4, max_new_tokens=4)
    groups = candidate_batches(found, settings.panel)
    baseline = measure_baseline(model, prompts.test, settings)
    every = frozenset(candidate.key for candidate in found)

    def measured(chosen: Sequence[tuple[Candidate, ...]], done: frozenset[str] = frozenset()):
        parts = measure_batches(model, prompts.test, baseline, settings, every - done, chosen)
        return {part.key: part.table for part in parts}

    return groups, measured


def test_a_candidate_does_not_depend_on_other_units_nor_on_what_was_done(sweep):
    groups, measured = sweep
    assert [len(group) for group in groups] == [4, 2, 15]
    together = measured(groups)
    assert list(together) == [candidate.key for candidate in chain.from_iterable(groups)]
    for group in reversed(groups):
        alone = measured([group])
        done = frozenset(candidate.key for candidate in group[:-1])
        for key, table in alone.items():
            pd.testing.assert_frame_equal(table, together[key], check_exact=True)
        (last,) = measured([group], done).values()
        pd.testing.assert_frame_equal(last, together[group[-1].key], check_exact=True)


# --------------------------------------------------------------------------- on a cluster


@pytest.fixture(scope="module")
def cluster(one_thread: None) -> Iterator[None]:
    """A cluster of two CPUs on the loopback address."""
    ray = start_here(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="class")
def executor(cluster: None) -> Iterator[RayExecutor]:
    """Two workers, of which none is started again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_cluster, "RESTARTS", 0)
        made = RayExecutor(MODEL, parameter_bytes=10**6)
    with made:
        yield made


def descendants() -> dict[int, str]:
    """Processes below this one, with their titles."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                titles[int(entry.name)] = (entry / "cmdline").read_text().split("\0")[0]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if stat[0] != "Z":
                parents[int(entry.name)] = int(stat[1])

    def is_below(pid: int) -> bool:
        while pid in parents:
            pid = parents[pid]
            if pid == os.getpid():
                return True
        return False

    return {pid: titles[pid] for pid in parents if is_below(pid)}


def workers() -> set[int]:
    return {pid for pid, title in descendants().items() if title.startswith("ray::Worker")}


def kill_one() -> int:
    """SIGKILL a worker of this process's own cluster."""
    chosen = max(workers())
    os.kill(chosen, signal.SIGKILL)
    return chosen


class TestTwoWorkers:
    def test_the_cluster_listens_on_the_loopback_address_only(self, executor):
        ours = descendants()
        inodes = set()
        for pid in ours:
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    target = os.readlink(link)
                except FileNotFoundError:
                    continue
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        listening = []
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    listening.append(fields[1].rpartition(":")[0])
        loopback = {socket.inet_aton("127.0.0.1")[::-1].hex().upper()}
        loopback |= {f"0000000000000000FFFF0000{host}" for host in loopback}
        assert len(listening) > 3
        assert set(listening) <= loopback

    def test_two_workers_share_the_work_and_every_piece_is_done_once(self, executor):
        def busy(_model: object, base: int, pieces: Sequence[int]) -> Iterator[tuple[int, int]]:
            for piece in pieces:
                time.sleep(0.3)
                yield base + piece, os.getpid()

        # The second worker may still be loading the model: pieces enough for it to join.
        found = list(executor.stream(busy, range(40), 100))
        assert sorted(value for value, _ in found) == list(range(100, 140))
        assert len({pid for _, pid in found}) == 2
        assert {pid for _, pid in found} == workers()

    def test_a_warning_of_ours_on_a_worker_is_given_here_and_no_other(self, executor):
        def warn(_model: object, category: type[Warning]) -> int:
            warnings.warn("cut in half", category, stacklevel=1)
            warnings.warn("of a library", DeprecationWarning, stacklevel=1)
            return torch.get_num_threads()

        with pytest.warns(BatchHalvedWarning, match="cut in half") as given:
            assert executor.call(warn, BatchHalvedWarning) == 1
        assert len(given) == 1

    def test_a_worker_that_dies_too_often_is_given_up(self, executor):
        def die(_model: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(ExecutorError, match=r"keeps dying .*--resume"):
            executor.call(die)


def test_a_model_that_cannot_be_loaded_is_named_as_here(cluster):
    wrong = {"model": "./no/such/folder"}
    with pytest.raises(ModelError) as here:
        LocalExecutor(otl.load_model(**wrong))
    with RayExecutor(wrong) as executor, pytest.raises(ModelError) as there:
        executor.call(id)
    assert str(here.value) == str(there.value)


def test_no_place_for_a_worker_is_said(cluster):
    with pytest.raises(ExecutorError, match=r"no node .* 1e\+03 GiB|no node .*GiB of memory"):
        RayExecutor(MODEL, parameter_bytes=2**60)
    with pytest.raises(ExecutorError, match="a GPU"):
        RayExecutor({**MODEL, "device": "cuda"})
    with pytest.raises(ExecutorError, match="connected to a Ray cluster already"):
        RayExecutor(MODEL, address="127.0.0.1:6379")


# --------------------------------------------------------------------------- whole studies


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory):
    return parse_config(
        {
            "prompts": str(prompt_file(tmp_path_factory.mktemp("study"))),
            "layers": [5, 7],
            "methods": ["directional_ablation", "rfa", {"name": "pca_ot", "k": 2}],
            "sets": ["single", "pair", "all"],
            "fitting": ["independent", "sequential"],
            "search_size": 2,
            "filter": "refusal_score",
            "max_new_tokens": 6,
            "control_draws": 2,
            "sufficiency": False,
            "batch_size": 3,
            "keep_completions": True,
        }
    )


@pytest.fixture(autouse=True)
def model_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Geometry, figures and report are drawn from tables in this process: here they would only take time."""
    monkeypatch.setattr(study_run, "geometry_tables", lambda *_args, **_options: None)
    monkeypatch.setattr(study_run, "_draw", lambda *_args: None)


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_run, "geometry_tables", lambda *_args, **_options: None)
        patch.setattr(study_run, "_draw", lambda *_args: None)
        run = tmp_path_factory.mktemp("reference") / "run"
        run_study(config, run)
    return contents(run)


def contents(run: Path) -> dict[str, bytes]:
    """All that a study measured; maps as their numbers, since safetensors orders metadata as it likes."""
    found = {
        str(path.relative_to(run)): path.read_bytes()
        for folder in ("activations", "tables", "completions")
        for path in sorted((run / folder).rglob("*"))
        if path.is_file()
    }
    for path in sorted((run / "maps").rglob("*.safetensors")):
        edit = otl.AffineMap.load(path)
        found[str(path.relative_to(run))] = b"".join(
            part.numpy().tobytes() for part in (edit.U, edit.V, edit.bias, edit.scale) if part is not None
        )
    return found


class Interruption:
    """Shows a study's progress, and does something in the middle of each stage named."""

    def __init__(self, **actions: object) -> None:
        self.actions, self.steps, self.totals = actions, {}, {}

    @contextmanager
    def stage(self, name: str, total: int):
        key = name.split(maxsplit=1)[0].strip(",")
        self.totals[key] = self.totals.get(key, 0) + total

        def step(done: int) -> None:
            self.steps[key] = self.steps.get(key, 0) + done
            if key in self.actions and done and self.steps[key] >= 3:
                self.actions.pop(key)()

        yield step


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.trust
def test_killed_workers_and_a_change_of_engine_leave_no_trace(config, reference, cluster, tmp_path):
    """A worker dies during the capture, the driver during the sweep; the run goes on here."""
    killed = []
    on_ray = Interruption(activations=lambda: killed.append(kill_one()), sweep=stop)
    with pytest.raises(KeyboardInterrupt):
        run_study(config, tmp_path / "run", executor="ray", stage=on_ray.stage)
    assert killed
    assert not workers() & set(killed)
    parts = list((tmp_path / "run" / "tables" / "parts").glob("[!.]*.parquet"))
    assert 3 <= len(parts) < on_ray.totals["sweep"]
    here = Interruption()
    run_study(config, tmp_path / "run", resume=True, stage=here.stage)
    assert here.steps["sweep"] == here.totals["sweep"]
    assert contents(tmp_path / "run") == reference
    assert RunFolder.open(tmp_path / "run").manifest["executors"] == ["local", "ray"]


@pytest.mark.trust
def test_a_run_stopped_here_goes_on_on_a_cluster_that_loses_a_worker(config, reference, cluster, tmp_path):
    here = Interruption(sweep=stop)
    with pytest.raises(KeyboardInterrupt):
        run_study(config, tmp_path / "run", stage=here.stage)
    done = len(list((tmp_path / "run" / "tables" / "parts").glob("[!.]*.parquet")))
    before = set()

    def kill() -> None:
        before.update(workers())
        kill_one()

    on_ray = Interruption(sweep=kill)
    run_study(config, tmp_path / "run", resume=True, executor="ray", stage=on_ray.stage)
    assert 3 <= done < on_ray.totals["sweep"]
    assert len(before) == 2
    assert on_ray.steps["sweep"] == on_ray.totals["sweep"]
    assert contents(tmp_path / "run") == reference
