"""Interrupts at any moment: between two hooks, within a removal, at the edges of a block."""

import gc
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import ot_lens as otl
from ot_lens.models import backend, evaluating, prompt_width
from ot_lens.single_pass import next_token_sweep
from tests import checkpoints
from tests.trust.leak_checks import (
    evaluated,
    interrupted_everywhere,
    leaked,
    light_look,
    random_map,
    state,
)

PROMPTS = ["w1 w2 w3 w4", "w5", "w6 w7"]
EDITS = {1: random_map(1), 2: random_map(2)}
# What runs where a block is entered or left; a signal that comes elsewhere falls inside the block.
ON_TRIAL = (
    "ot_lens/models/changes.py",
    "ot_lens/models/backend.py",
    "ot_lens/models/protocol.py",
    "ot_lens/models/hugging_face.py",
    "ot_lens/models/in_force.py",
    "ot_lens/interventions.py",
    "transformer_lens/hook_points.py",
    "torch/utils/hooks.py",
    "torch/autograd/grad_mode.py",
    "contextlib.py",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module", params=["residual", "full"])
def model(request: pytest.FixtureRequest, folder: Path):
    loaded = otl.load_model(folder, hooks=request.param)
    backend(loaded).hook_point(1, "resid_pre").add_hook(_look)
    loaded.train()
    evaluated(loaded, checkpoints.one_batch(loaded, PROMPTS))
    return loaded


def _look(x: torch.Tensor, hook: object) -> None:
    """A hook that only reads."""


def _blocks(model: Any) -> None:
    with evaluating(model), prompt_width(5), otl.intervene(model, EDITS, "last"):
        pass


def test_an_interrupt_at_any_step_of_entering_or_leaving_leaves_nothing(model, full_size, record_property):
    """Once for every step of Python at which a signal can be handled."""
    every = 1 if full_size else 5
    places, lost, held = interrupted_everywhere(lambda: _blocks(model), light_look(model), ON_TRIAL, every)
    record_property("interrupted_places", places)
    assert places > 200
    assert lost == {}
    # The block is over and `__exit__` has not begun: Python's own gap, until the interrupt is dropped.
    assert held <= {"call changes.py __exit__"}


def test_the_same_check_finds_what_exit_stack_and_generators_lose(model):
    """The negative control: the usual way to write such a context."""
    points = [backend(model).hook_point(layer, "resid_pre") for layer in (1, 2)]

    @contextmanager
    def usual() -> Iterator[None]:
        with ExitStack() as stack:
            for point in points:
                point.add_hook(_look)
                stack.callback(point.fwd_hooks[-1].hook.remove)
                stack.callback(point.fwd_hooks.pop)
            yield

    def task() -> None:
        with usual():
            pass

    look = light_look(model)
    before = look()
    _, lost, _ = interrupted_everywhere(task, light_look(model), (*ON_TRIAL, Path(__file__).name))
    assert lost
    for point in points:
        keys = {key for key, _ in before.get(f"{point.name}._forward_hooks", [])}
        for key in [key for key in point._forward_hooks if key not in keys]:
            point._forward_hooks.pop(key)
        point.fwd_hooks[:] = [one for one in point.fwd_hooks if one.hook.id in keys]
    assert leaked(before, look()) == []


def test_capture_and_single_pass_leave_nothing_at_any_interrupt(folder, full_size):
    """Only their own steps are interrupted, those of the model not: one that is would interrupt the block."""
    model = otl.load_model(folder)
    contrast = checkpoints.contrast(1)
    files = ("ot_lens/models/changes.py",)
    if full_size:
        files += ("ot_lens/activations/shards.py", "ot_lens/single_pass/hugging_face.py")
    tasks: list[Callable[[], Any]] = [
        lambda: otl.capture(model, contrast, layers=[1], edits={0: random_map()}, tokens="last"),
        lambda: next_token_sweep(model, ["w1"], [EDITS], lambda rows, own: rows[..., :2]),
    ]
    for task in tasks:
        task()
        _, lost, held = interrupted_everywhere(task, light_look(model), files, 1 if full_size else 23)
        assert lost == {}
        assert held <= {"call changes.py __exit__"}


def test_interrupts_at_random_moments_leave_nothing(model, full_size, record_property, monkeypatch):
    """Real signals, from a timer of the system, at moments drawn over a whole use of the model."""
    batch = checkpoints.one_batch(model, PROMPTS)
    rounds, generator = 5_000 if full_size else 60, random.Random(0)
    before, look = state(model, batch), light_look(model)
    light = look()
    served = backend(model)

    def use() -> None:
        with evaluating(model), otl.intervene(model, EDITS, "last"):
            if generator.random() < 0.2:
                served.logits(batch.tokens[:, -1:], batch.mask[:, -1:], keep=1)

    started = time.perf_counter()
    for _ in range(50):
        use()
    span = (time.perf_counter() - started) / 50
    hit = late = 0
    lost_in_finalisers: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lost_in_finalisers.append)
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(rounds):
            try:
                signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-6, span))
                use()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hit += 1
            if leaked(light, look()):
                # An interrupt in Python's own gap, its traceback held by a cycle of whoever passed it on.
                late += 1
                gc.collect()
            assert leaked(light, look()) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    record_property("signals", hit)
    record_property("taken_back_by_the_garbage_collector", late)
    assert late <= hit / 100
    record_property("signals_dropped_by_finalisers", len(lost_in_finalisers))
    assert hit > rounds / 4
    assert leaked(before, state(model, batch)) == []
