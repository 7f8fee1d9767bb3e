"""The runner: every named task is run once, and a stopped run ends with the results of an undisturbed one."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pandas as pd
import pytest
import torch

import ot_lens as otl
from ot_lens.execution import LocalExecutor, Runner, as_runner
from ot_lens.localization import MethodSpec, SweepPlan, fit_maps, search, sweep_settings
from ot_lens.prompts import Contrast, ContrastSet
from ot_lens.study import RunFolder, StudyConfig
from ot_lens.study.sweeping import FolderCache
from ot_lens.transport import AffineMap


class StoppedError(Exception):
    """In the middle of a task."""


class StoppingExecutor(LocalExecutor):
    """Runs tasks in this process, and stops after some number of them."""

    def __init__(self, model: Any = None, stops_after: int | None = None) -> None:
        super().__init__(model)
        self.stops_after, self.done = stops_after, []

    def stream(self, function: Any, tasks: Sequence[Any], *arguments: Any) -> Iterator[Any]:
        for task in tasks:
            if len(self.done) == self.stops_after:
                raise StoppedError
            self.done.append(task[0])
            yield from super().stream(function, [task], *arguments)


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.start(tmp_path, StudyConfig(), resume=False)


def scaled(_model: Any, factor: float, numbers: list[float]) -> list[float]:
    return [factor * number for number in numbers]


def test_a_resumed_map_runs_only_the_tasks_that_are_not_in_the_cache(folder):
    tasks = {"a": [0.1, 1 / 3], "b": [], "c": [1e-300, float("inf")]}
    first, second, third, other = (StoppingExecutor(stops_after=n) for n in (2, None, 0, None))
    planned = FolderCache(folder, "parts/planned")
    with pytest.raises(StoppedError):
        Runner(first, planned).map(scaled, tasks, 3.0)
    results = Runner(second, planned).map(scaled, tasks, 3.0)
    assert (first.done, second.done) == (["a", "b"], ["c"])
    assert results == {name: scaled(None, 3.0, task) for name, task in tasks.items()}
    assert list(results) == list(tasks)
    assert Runner(third, planned).map(scaled, tasks, 3.0) == results
    Runner(other, FolderCache(folder, "filtered")).map(scaled, tasks, 3.0)
    assert other.done == list(tasks)
    assert as_runner(None).map(scaled, tasks, 3.0) == results


def test_a_folder_returns_results_to_the_bit(folder):
    cache = FolderCache(folder, "parts")
    drawn = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edit = AffineMap(drawn[:, ::2], drawn[:, 1::2], drawn[:, 0] / 3).labelled(layer=2, ridge=1 / 3)
    table = pd.DataFrame({"layer": [1, 2], "value": [0.1, 1 / 3]})
    cache["map"], cache["truths"], cache["table"] = edit, [True, False], table
    assert all(torch.equal(getattr(cache["map"], name), getattr(edit, name)) for name in ("U", "V", "bias"))
    assert cache["map"].info == edit.info
    assert [value is True for value in cache["truths"]] == [True, False]
    pd.testing.assert_frame_equal(cache["table"], table, check_exact=True)
    assert "another" not in cache


@pytest.fixture(scope="module")
def organism() -> Any:
    return otl.load_model("organism:single")


@pytest.fixture(scope="module")
def prompts() -> Any:
    full = otl.load_prompts("organism")
    few = {s: Contrast(c.harmful[:6], c.harmless[:6]) for s, c in dict(full.splits).items()}
    return ContrastSet("few", **few)


METHODS = [MethodSpec("mean_shift"), MethodSpec("pca_ot", {"k": 2})]


def test_filter_sequential_fits_and_search_stopped_at_every_task_end_as_in_one_go(organism, prompts, folder):
    acts = otl.capture(organism, prompts.train, layers=[3, 5, 7])
    maps = fit_maps(acts, METHODS, layers=acts.layers, position=-1)
    settings = sweep_settings(organism, ["refusal_score"], batch_size=4)

    def work(model: Any) -> tuple[Any, ...]:
        kept = otl.filter_by_behaviour(model, prompts, splits=["val"], batch_size=4)
        later = otl.fit_sequentially(
            model, prompts.train, METHODS, layers=acts.layers, batch_size=4, acts=acts
        )
        plan = SweepPlan(search_size=2, search_each_size=True)
        best = search(model, prompts.val.harmful, maps, settings, plan)
        return kept, later, [(b.key, b.chosen_at, b.note) for b in best]

    expected = work(organism)
    done: list[str] = []
    for _ in range(20):
        executor = StoppingExecutor(organism, stops_after=1)
        try:
            kept, later, best = work(Runner(executor, FolderCache(folder, "parts")))
            break
        except StoppedError:
            done += executor.done
    assert len(done) == len(set(done)) == 2 * 2 + 2 * 3 + 2 * 2 - 1
    assert (kept.provenance, best) == (expected[0].provenance, expected[2])
    for method, layer in product(METHODS, acts.layers):
        assert torch.equal(later[method][layer].bias, expected[1][method][layer].bias)
