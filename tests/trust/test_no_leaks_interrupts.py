"""Any order of use, and interrupts at any moment: between two hooks, at the edges of a block."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import ot_lens as otl
from ot_lens.models import backend, evaluating, prompt_width
from ot_lens.single_pass import next_token_sweep
from tests import checkpoints
from tests.trust.leak_checks import (
    EDITS,
    PROMPTS,
    evaluated,
    interrupted_everywhere,
    leaked,
    light_look,
    only_look,
    random_map,
)
from tests.trust.leak_machine import any_order

# Code that runs when a block is entered or left; signals elsewhere fall inside the block.
TESTED = (
    "ot_lens/models/reversible.py",
    "ot_lens/models/backends.py",
    "ot_lens/interventions.py",
    "transformer_lens/hook_points.py",
    "torch/utils/hooks.py",
    "torch/autograd/grad_mode.py",
    "contextlib.py",
)


@pytest.mark.parametrize("hooks", ["residual", "full"])
def test_any_order_of_use_leaves_nothing(llama_folder, hooks, full_size, record_property):
    examples, steps = (100, 30) if full_size else (4, 15)
    record_property("runs", f"{examples} of {steps} steps")
    any_order(lambda: otl.load_model(llama_folder, hooks=hooks), examples=examples, steps=steps)


@pytest.fixture(scope="module", params=["residual", "full"])
def model(request: pytest.FixtureRequest, llama_folder: Path):
    """A model in training mode, with a hook of the user."""
    model = otl.load_model(llama_folder, hooks=request.param)
    backend(model).hook_point(1, "resid_pre").add_hook(only_look)
    model.train()
    evaluated(model, checkpoints.one_batch(model, PROMPTS))
    return model


def _blocks(model: Any) -> None:
    with evaluating(model), prompt_width(5), otl.intervene(model, EDITS, "last"):
        pass


def test_an_interrupt_at_any_step_of_entering_or_leaving_leaves_nothing(model, full_size, record_property):
    """Once for every step of Python that can handle a signal."""
    every = 1 if full_size else 5
    places, lost, held = interrupted_everywhere(lambda: _blocks(model), light_look(model), TESTED, every)
    record_property("interrupted_places", places)
    assert places > 200
    assert lost == {}
    # The block has ended and `__exit__` has not begun: a gap of Python, until the interrupt is deleted.
    assert held <= {"call reversible.py __exit__"}


def test_the_check_detects_what_exit_stack_and_generators_lose(model):
    """The negative control: the usual way to write such a context."""
    points = [backend(model).hook_point(layer, "resid_pre") for layer in (1, 2)]

    @contextmanager
    def usual() -> Iterator[None]:
        with ExitStack() as stack:
            for point in points:
                point.add_hook(only_look)
                stack.callback(point.fwd_hooks[-1].hook.remove)
                stack.callback(point.fwd_hooks.pop)
            yield

    def task() -> None:
        with usual():
            pass

    look = light_look(model)
    before = look()
    _, lost, _ = interrupted_everywhere(task, light_look(model), (*TESTED, Path(__file__).name))
    assert lost
    for point in points:
        keys = {key for key, _ in before.get(f"{point.name}._forward_hooks", [])}
        for key in [key for key in point._forward_hooks if key not in keys]:
            point._forward_hooks.pop(key)
        point.fwd_hooks[:] = [one for one in point.fwd_hooks if one.hook.id in keys]
    assert leaked(before, look()) == []


def test_capture_and_single_pass_leave_nothing_at_any_interrupt(llama_folder, full_size):
    """Only their own steps are interrupted, not those of the model inside the block."""
    model = otl.load_model(llama_folder)
    contrast = checkpoints.contrast(1)
    files = ("ot_lens/models/reversible.py",)
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
        assert held <= {"call reversible.py __exit__"}
