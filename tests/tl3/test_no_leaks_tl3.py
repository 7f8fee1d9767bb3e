"""Interventions never leak: on a HookedTransformer, whose hook points are TransformerLens's own."""

import copy
import threading
from typing import Any

import pytest

import ot_lens as otl
from ot_lens.errors import HookError
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.models import evaluating, prompt_width
from tests import checkpoints
from tests.trust.leak_checks import (
    bits,
    evaluated,
    interrupted_everywhere,
    leaked,
    light_look,
    random_map,
    state,
)

PROMPTS = ["w1 w2 w3 w4 w5", "w6", "w7 w8 w9"]
EDITS = {0: random_map(1), 1: random_map(2)}


class OwnError(Exception):
    """An error of the user."""


@pytest.fixture
def batch(hooked):
    point = hooked.hook_dict["blocks.1.hook_resid_pre"]
    for options in ({}, {"is_permanent": True}, {"level": 7}):
        point.add_hook(lambda x, hook: None, **options)
    found = checkpoints.one_batch(hooked, PROMPTS)
    evaluated(hooked, found)
    return found


def _fail(*_: object, **__: object) -> None:
    raise OwnError


def test_the_checks_detect_a_leak(hooked, batch):
    before = state(hooked, batch)
    hooked.hook_dict["blocks.0.hook_resid_pre"].add_hook(lambda x, hook: x + 1)
    assert {"logits", "hooks blocks.0.hook_resid_pre.fwd_hooks"} <= set(leaked(before, state(hooked, batch)))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("tokens", TOKEN_SCOPES)
def test_errors_interrupts_and_generators_leave_nothing(hooked, batch, tokens, training):
    hooked.train(training)
    before, edits_here = state(hooked, batch), tokens != "generated"
    for error in (OwnError, KeyboardInterrupt):
        with pytest.raises(error), otl.intervene(hooked, EDITS, tokens):
            raise (
                error if (bits(hooked, batch) == before["logits"]) == (tokens == "generated") else ValueError
            )
        assert leaked(before, state(hooked, batch)) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ot_lens.transport.AffineMap.__call__", _fail)
        if edits_here:
            with pytest.raises(OwnError), otl.intervene(hooked, EDITS, tokens):
                bits(hooked, batch)
    assert leaked(before, state(hooked, batch)) == []

    def edited() -> Any:
        with otl.intervene(hooked, EDITS, tokens):
            while True:
                yield bits(hooked, batch)

    outputs = edited()
    next(outputs)
    del outputs
    assert leaked(before, state(hooked, batch)) == []


def test_blocks_overlap_and_a_handle_is_entered_once(hooked, batch):
    before = state(hooked, batch)
    first, second = (otl.intervene(hooked, {1: random_map(seed)}) for seed in range(2))
    first.__enter__()
    second.__enter__()
    with pytest.raises(HookError, match="entered"):
        first.__enter__()
    first.__exit__(None, None, None)
    left = bits(hooked, batch)
    second.__exit__(None, None, None)
    assert leaked(before, state(hooked, batch)) == []
    with second:
        assert bits(hooked, batch) == left
    assert leaked(before, state(hooked, batch)) == []


def test_copies_and_threads(hooked, batch):
    plain = bits(hooked, batch)
    with otl.intervene(hooked, EDITS, "last"):
        inside, other, found = bits(hooked, batch), copy.deepcopy(hooked), []
        assert bits(other, batch) == inside

        def work() -> None:
            found.append(bits(hooked, batch))
            try:
                otl.intervene(hooked, EDITS).__enter__()
            except HookError as error:
                found.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found[0] == inside
    assert "active intervention" in found[1]
    assert bits(other, batch) == bits(hooked, batch) == plain


def test_an_interrupt_at_any_step_of_entering_or_leaving_leaves_nothing(hooked, batch, record_property):
    files = (
        "interventions.py",
        "reversible.py",
        "backends.py",
        "hook_points.py",
        "hooks.py",
    )
    hooked.train()

    def task() -> None:
        with evaluating(hooked), prompt_width(5), otl.intervene(hooked, EDITS, "last"):
            pass

    places, lost, held = interrupted_everywhere(task, light_look(hooked), files)
    record_property("interrupted_places", places)
    assert places > 150
    assert lost == {}
    assert held <= {"call reversible.py __exit__"}
