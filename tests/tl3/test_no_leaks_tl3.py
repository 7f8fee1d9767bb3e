"""Interventions never leak: on a HookedTransformer, whose hook points are TransformerLens's own."""

import pytest

import ot_lens as otl
from ot_lens.models import evaluating, prompt_width
from tests import checkpoints
from tests.tl3 import build
from tests.trust.leak_checks import (
    EDITS,
    PROMPTS,
    OwnError,
    bits,
    evaluated,
    interrupted_everywhere,
    leaked,
    light_look,
    only_look,
    state,
)
from tests.trust.leak_machine import any_order


def test_any_order_of_use_leaves_nothing(llama_folder, full_size):
    load = lambda: build.hooked_transformer(llama_folder)  # noqa: E731
    any_order(load, examples=50 if full_size else 4, steps=15)


@pytest.fixture
def batch(hooked):
    point = hooked.hook_dict["blocks.1.hook_resid_pre"]
    for options in ({}, {"is_permanent": True}, {"level": 7}):
        point.add_hook(only_look, **options)
    prompts = checkpoints.one_batch(hooked, PROMPTS)
    evaluated(hooked, prompts)
    return prompts


@pytest.mark.parametrize("error", [OwnError, KeyboardInterrupt])
def test_a_model_in_training_mode_is_left_as_it_was(hooked, batch, error):
    hooked.train()
    before = state(hooked, batch)
    handle = otl.intervene(hooked, EDITS, "last")
    handle.__enter__()
    assert bits(hooked, batch) != before["logits"]
    handle.__exit__(error, error(), None)
    assert leaked(before, state(hooked, batch)) == []


def test_an_interrupt_at_any_step_of_entering_or_leaving_leaves_nothing(hooked, batch, record_property):
    hooked.train()

    def task() -> None:
        with evaluating(hooked), prompt_width(5), otl.intervene(hooked, EDITS, "last"):
            pass

    files = ("interventions.py", "reversible.py", "backends.py", "hook_points.py", "hooks.py")
    places, lost, held = interrupted_everywhere(task, light_look(hooked), files)
    record_property("interrupted_places", places)
    assert places > 150
    assert lost == {}
    assert held <= {"call reversible.py __exit__"}
