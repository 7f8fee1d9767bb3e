"""Executors: the same bytes here and on a cluster, through killed workers and a change of executor."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

import ot_lens as otl
from ot_lens.errors import BatchHalvedWarning, ExecutorError, HelperLostWarning, ModelError
from ot_lens.execution import (
    LocalExecutor,
    RayExecutor,
    Runner,
    as_runner,
    open_executor,
    ray_address,
    ray_cluster,
    shared_cluster,
)
from ot_lens.io.helpers import helpers
from ot_lens.localization import MethodSpec, measure_sweep, sweep_settings
from ot_lens.localization.candidates import candidates
from ot_lens.study import RunFolder, StudyConfig, read_config, run_study
from ot_lens.study import run as study_run
from ot_lens.transport import AffineMap
from tests import tasks
from tests.processes import descendants, workers
from tests.trust.kill_harness import write_study

MODEL = {"model": "organism"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A worker then takes one CPU, and two fit on the cluster of these tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    changes = {"methods": ["rfa", {"name": "pca_ot", "k": 2}], "sets": ["single", "pair", "all"]}
    changes |= {"max_new_tokens": 3, "batch_size": 3}
    return read_config(write_study(tmp_path_factory.mktemp("study"), n=6, **changes))


@pytest.fixture(scope="module")
def prompts(config: StudyConfig) -> otl.ContrastSet:
    return otl.load_prompts(config.prompts)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_fails_at_once(address):
    start = time.monotonic()
    with pytest.raises(ExecutorError, match=address):
        RayExecutor(MODEL, address=address)
    assert time.monotonic() - start < 60  # Ray itself looks for minutes


def test_what_is_not_an_address_is_named(monkeypatch):
    for address in ("somewhere", "ray://", "host:port", ":1"):
        with pytest.raises(ExecutorError, match=f"'{address}'"):
            RayExecutor(MODEL, address=address)
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere")
    with pytest.raises(ExecutorError, match="elsewhere"):
        RayExecutor(MODEL)


@pytest.mark.parametrize(
    ("name", "address", "named"),
    [("spark", None, "'spark'.*local, ray"), ("local", "host:1", "host:1"), ("ray", None, r"ot-lens\[ray\]")],
)
def test_an_executor_that_cannot_be_opened_says_what_it_needs(name, address, named, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=named), open_executor(name, MODEL, address=address):
        pass


def test_a_candidate_depends_neither_on_other_batches_nor_on_what_was_measured(prompts):
    model = otl.load_model("organism")
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.randn(96, 2, generator=generator, dtype=torch.float64) / 3 for _ in range(2))
    maps = {layer: AffineMap(U * (layer + 1), V, torch.zeros(96, dtype=torch.float64)) for layer in range(6)}
    settings = sweep_settings(model, ["refusal_score", "kl", "refusal_rate"], batch_size=4, max_new_tokens=4)
    found = candidates({MethodSpec("pca_ot", {"k": 2}): maps}, settings, ["single", "pair"])
    runner = as_runner(model)
    whole = measure_sweep(runner, prompts.test, found, settings)
    assert list(whole)[1:] == [candidate.key for candidate in found]
    # The last of the first batch of four, one of the second, and one that is only read.
    chosen = [found[3].key, found[5].key, found[20].key]
    for keys in ([key] for key in chosen):
        for key, table in measure_sweep(model, prompts.test, found, settings, keys=keys).items():
            pd.testing.assert_frame_equal(table, whole[key], check_exact=True)
    reported: list[str] = []
    again = measure_sweep(runner, prompts.test, found, settings, progress=reported.append)
    assert reported == list(whole)
    assert all(again[key] is whole[key] for key in whole), "nothing is measured twice"


def until_it_helps(executor: LocalExecutor) -> None:
    """Wait until the other process has loaded its model; before, it takes no tasks."""
    until = time.monotonic() + 120
    while len({pid for _, pid in executor.stream(tasks.busy, range(4), 0)}) < 2:
        assert time.monotonic() < until


@pytest.fixture(scope="module")
def helped(one_thread: None) -> Iterator[LocalExecutor]:
    """This process and another."""
    with open_executor("local", MODEL, processes=2) as executor:
        until_it_helps(executor)
        yield executor


def _unsent() -> Any:
    """A function that cannot be pickled."""

    def done(_model: object, driver: int, given: Any) -> Any:
        return tasks.die(_model, driver, given)

    return done


class TestHelper:
    """Another process shares the tasks."""

    def test_it_shares_the_tasks_and_each_is_done_once(self, helped):
        results = list(helped.stream(tasks.busy, range(6), 100))
        assert sorted(value for value, _ in results) == list(range(100, 106))
        pids = {pid for _, pid in results}
        assert len(pids) == 2
        assert os.getpid() in pids
        assert list(helped.stream(tasks.busy, [5], 1)) == [(6, os.getpid())], "one task is done here"

    def test_localize_returns_the_table_of_one_process(self, helped, prompts):
        options = {"methods": ["rfa", "mean_shift"], "layers": [5, 7], "search_size": 2, "batch_size": 3}
        options |= {"fitting": ["independent", "sequential"], "max_new_tokens": 3}
        together = otl.localize(Runner(helped), prompts, **options)
        alone = otl.localize(otl.load_model("organism"), prompts, **options)
        pd.testing.assert_frame_equal(together, alone, check_exact=True)

    def test_its_warnings_are_given_here(self, helped):
        with pytest.warns(BatchHalvedWarning, match="cut in half") as given:
            assert sorted(helped.stream(tasks.warn, range(6))) == list(range(6))
        assert len(given) == 6

    def test_what_it_fails_at_is_done_here_where_the_error_is_met_again(self, helped):
        assert sorted(helped.stream(tasks.fail, range(4), os.getpid())) == list(range(4))
        with pytest.raises(ModelError, match="task 99 in the driver: True"):
            list(helped.stream(tasks.fail, [99, 99], os.getpid()))

    @pytest.mark.parametrize("lost", [pytest.param("killed", marks=pytest.mark.campaign), "cannot be sent"])
    def test_it_can_be_lost(self, lost, one_thread):
        with open_executor("local", MODEL, processes=2) as executor:
            until_it_helps(executor)
            function = tasks.die if lost == "killed" else _unsent()
            with pytest.warns(HelperLostWarning, match="done without it"):
                assert sorted(executor.stream(function, range(4), os.getpid())) == list(range(4))
            assert {pid for _, pid in executor.stream(tasks.busy, range(3), 0)} == {os.getpid()}

    def test_it_can_be_paused_in_the_middle_of_an_answer(self, monkeypatch):
        """As by Ctrl-Z, and where Python is told not to buffer what it writes."""
        monkeypatch.setenv("PYTHONUNBUFFERED", "1")
        before, until = set(descendants(os.getpid())), time.monotonic() + 60
        with ThreadPoolExecutor(1) as pool, helpers(1, partial, bytes, 2**26) as (helper,):
            (process,) = set(descendants(os.getpid())) - before
            answer = pool.submit(helper.ask)
            while not answer.done():
                assert time.monotonic() < until
                for pause in (signal.SIGSTOP, signal.SIGCONT):
                    os.kill(process, pause)
                    time.sleep(0.01)
            assert answer.result() == bytes(2**26)

    def test_a_stream_that_is_given_up_ends_it_in_the_middle_of_its_task(self, one_thread):
        before = set(descendants(os.getpid()))
        with open_executor("local", MODEL, processes=2) as executor:
            assert set(descendants(os.getpid())) - before
            stream = executor.stream(tasks.busy, range(100), 0)
            next(stream)
            stream.close()
            assert set(descendants(os.getpid())) <= before

    @pytest.mark.parametrize(("name", "processes"), [("ray", 2), ("local", 0)])
    def test_numbers_of_processes_that_make_no_sense_are_errors(self, name, processes):
        with (
            pytest.raises(ExecutorError, match=f"{processes} processes"),
            open_executor(name, MODEL, processes=processes),
        ):
            pass


@pytest.mark.trust
def test_a_study_in_two_processes_is_that_of_one(config, tmp_path, monkeypatch):
    """Tables, maps and activations byte for byte; a stop in the middle, in one process, leaves no trace."""
    monkeypatch.setattr(study_run, "_draw", lambda *_args: None)
    progress = Disturbance()
    sweep = run_study(config, tmp_path / "one", stage=progress.stage).tables["localization"]
    answered = sweep.loc[sweep["measure"] == "refusal_rate", "key"].nunique()
    assert all(progress.counts[name] for name in ("localizers", "interchange", "heads left out"))
    assert progress.counts["sweep, answers"] == answered
    assert progress.counts["sweep, next token"] == sweep["key"].nunique() - answered > 0
    with pytest.raises(KeyboardInterrupt):
        run_study(config, tmp_path / "two", processes=2, stage=Disturbance(sweep=stop).stage)
    run_study(config, tmp_path / "two", processes=2, resume=True)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


@pytest.fixture(scope="module")
def cluster(one_thread: None) -> Iterator[str]:
    """The node of a cluster of two CPUs on the loopback address, shared by all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_address, "start_here", partial(ray_address.start_here, num_cpus=2))
        with shared_cluster("ray"):
            import ray

            yield only_node(ray)
    assert not ray.is_initialized(), "it ends with the block"


def only_node(ray: Any) -> str:
    [node] = ray.nodes()
    return str(node["NodeID"])


@pytest.fixture(scope="class")
def executor(cluster: None) -> Iterator[RayExecutor]:
    """Two workers, each of which is restarted once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_cluster, "RESTARTS", 1)
        made = RayExecutor(MODEL, parameter_bytes=10**6)
    with made:
        yield made


def contents(run: Path) -> dict[str, bytes]:
    """All that a study measured; maps as their numbers, since safetensors does not order metadata."""
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


class Disturbance:
    """Follows a study's progress, and does something once, in the middle of each stage named."""

    def __init__(self, after: int = 3, **actions: Any) -> None:
        self.after, self.actions, self.steps, self.totals, self.counts = after, actions, {}, {}, {}

    @contextmanager
    def stage(self, name: str, total: int | None):
        key = name.split(maxsplit=1)[0].strip(",")
        self.totals[key] = self.totals.get(key, 0) + (total or 0)
        self.counts[name] = total

        def step(done: int) -> None:
            self.steps[key] = self.steps.get(key, 0) + done
            if key in self.actions and done and self.steps[key] >= self.after:
                self.actions.pop(key)()

        yield step


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.trust
class TestTwoWorkers:
    """In this order: two of the tests use up the restarts of both workers, and the last one needs that."""

    def test_the_cluster_listens_on_the_loopback_address_only(self, executor):
        ours = descendants(os.getpid())
        sockets = [at for at in psutil.net_connections("tcp") if at.pid in ours and at.status == "LISTEN"]
        assert len(sockets) > 3
        assert {at.laddr.ip.removeprefix("::ffff:") for at in sockets} == {"127.0.0.1"}

    def test_two_workers_share_the_tasks_and_run_each_once(self, executor):
        seen, until = set(), time.monotonic() + 240  # Ray's workers give way to all other processes
        while len(seen) < 2 and time.monotonic() < until:  # the second worker may still load the model
            results = list(executor.stream(tasks.busy, range(6), 100))
            assert sorted(value for value, _ in results) == list(range(100, 106))
            seen |= {pid for _, pid in results}
        assert seen == workers(os.getpid())
        assert len(seen) == 2

    def test_only_warnings_of_this_package_reach_the_driver(self, executor):
        def warn(_model: object, category: type[Warning]) -> int:
            warnings.warn("cut in half", category, stacklevel=1)
            warnings.warn("of a library", DeprecationWarning, stacklevel=1)
            return torch.get_num_threads()

        with pytest.warns(BatchHalvedWarning, match="cut in half") as given:
            assert executor.call(warn, BatchHalvedWarning) == 1
        assert len(given) == 1

    def test_localize_on_a_cluster_returns_the_table_of_this_process(self, executor, prompts):
        options = {"methods": ["mean_shift"], "layers": [5, 7], "measures": ["refusal_score", "kl"]}
        options |= {"fitting": ["independent", "sequential"], "search_size": 2, "batch_size": 3}
        there = otl.localize(Runner(executor), prompts, **options)
        here = otl.localize(otl.load_model("organism"), prompts, **options)
        pd.testing.assert_frame_equal(there, here, check_exact=True)

    @pytest.mark.campaign
    def test_killed_workers_and_changes_of_executor_leave_no_trace(
        self, config, executor, monkeypatch, tmp_path
    ):
        """A study is stopped on the cluster, then in this process, and ends on the cluster; workers die."""
        # Geometry, figures and report are made from tables in this process: here they would only take time.
        monkeypatch.setattr(study_run, "geometry_tables", lambda *_args, **_options: None)
        monkeypatch.setattr(study_run, "_draw", lambda *_args: None)
        monkeypatch.setattr(ray_cluster, "RayExecutor", lambda *_args, **_options: nullcontext(executor))
        run_study(config, tmp_path / "undisturbed")

        def kill(which: Any) -> None:
            os.kill(which(workers(os.getpid())), signal.SIGKILL)

        first = Disturbance(activations=lambda: kill(max), sweep=stop)
        second = Disturbance(after=5, sweep=stop)
        third = Disturbance(after=7, sweep=lambda: kill(min))
        run, parts = tmp_path / "run", tmp_path / "run" / "tables" / "parts"
        measured = []
        for name, disturbance in (("ray", first), ("local", second)):
            with pytest.raises(KeyboardInterrupt):
                run_study(config, run, resume=bool(measured), executor=name, stage=disturbance.stage)
            measured.append(len(list(parts.glob("[!.]*.parquet"))))
        run_study(config, run, resume=True, executor="ray", stage=third.stage)
        assert 3 <= measured[0] < measured[1] < first.totals["sweep"]
        assert third.steps["sweep"] == third.totals["sweep"]
        assert [d.actions for d in (first, second, third)] == [{}, {}, {}], "everything happened"
        assert contents(run) == contents(tmp_path / "undisturbed")
        assert RunFolder.open(run).manifest["executors"] == ["local", "ray"]

    @pytest.mark.campaign
    def test_a_worker_that_dies_too_often_is_given_up(self, executor):
        def die(_model: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(ExecutorError, match="--resume"):
            executor.call(die)


@pytest.mark.campaign
def test_models_of_a_queue_share_one_cluster(cluster, llama_folder, monkeypatch):
    """After the workers above, another executor with its own model, on the cluster that was started once."""
    import ray

    def first_weight(model: Any) -> float:
        return float(next(iter(model.hf_model.parameters())).detach().sum())

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # for one worker instead of two
    with open_executor("ray", {"model": str(llama_folder)}, parameter_bytes=10**6) as made:
        there = made.call(first_weight)
    assert there == first_weight(otl.load_model(llama_folder)) != first_weight(otl.load_model("organism"))
    assert ray.is_initialized(), "it ends with the block around the queue"
    assert only_node(ray) == cluster


@pytest.mark.campaign
def test_a_model_that_cannot_be_loaded_is_named_as_in_this_process(cluster, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # for one worker instead of two
    wrong = {"model": "./no/such/folder"}
    with pytest.raises(ModelError) as here, open_executor("local", wrong):
        pass
    with RayExecutor(wrong) as executor, pytest.raises(ModelError) as there:
        executor.call(id)
    assert str(here.value) == str(there.value)


@pytest.mark.trust
@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MODEL, {"parameter_bytes": 2**60}, "GiB of memory"),
        ({**MODEL, "device": "cuda"}, {}, "a GPU"),
        (MODEL, {"address": "127.0.0.1:6379"}, "already connected to a Ray cluster"),
    ],
)
def test_a_worker_without_resources_or_a_second_cluster_is_an_error(cluster, model, options, message):
    with pytest.raises(ExecutorError, match=message):
        RayExecutor(model, **options)
