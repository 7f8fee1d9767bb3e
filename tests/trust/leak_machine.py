"""Any order of entering, leaving, hooking, copying and raising: exactly the entered edits are active."""

import copy
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import ot_lens as otl
from ot_lens.errors import HookError
from ot_lens.interventions import TOKEN_SCOPES
from ot_lens.models import backend
from tests import checkpoints
from tests.trust.leak_checks import (
    PROMPTS,
    OwnError,
    bits,
    evaluated,
    hook_tables,
    leaked,
    logits,
    random_map,
    state,
)

MAPS = [random_map(seed) for seed in range(3)]
POINTS = [(layer, hook) for layer in (0, 1, 3) for hook in ("resid_pre", "mlp_out", "resid_post")]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {}, "permanent": {"is_permanent": True}, "level": {"level": 3}, "first": {"prepend": True},
}  # fmt: skip


class _Block:
    """A block of the machine: its handle, edits and scope."""

    def __init__(self, model: Any, sites: list[tuple[int, str]], number: int, tokens: str) -> None:
        self.edits = {site: MAPS[(number + i) % 3] for i, site in enumerate(sites)}
        self.tokens = tokens
        self.handle = otl.intervene(model, self.edits, tokens)


class Machine(RuleBasedStateMachine):
    """A model in use; `twin` computes what it must compute, with hooks added by hand."""

    model: Any
    twin: Any

    def __init__(self) -> None:
        super().__init__()
        self.batch = checkpoints.one_batch(self.model, PROMPTS)
        self.clean = state(self.model, self.batch)
        self.blocks: list[_Block] = []
        self.user: list[tuple[Any, Any]] = []
        self.copies: list[tuple[Any, list[weakref.ref[_Block]]]] = []

    def point(self, site: tuple[int, str]) -> Any:
        return backend(self.model).hook_point(*site)

    @precondition(lambda self: len(self.blocks) < 4)
    @rule(
        sites=st.lists(st.sampled_from(POINTS), min_size=1, max_size=3, unique=True),
        number=st.integers(0, 2),
        tokens=st.sampled_from(TOKEN_SCOPES),
    )
    def enter(self, sites: list[tuple[int, str]], number: int, tokens: str) -> None:
        block = _Block(self.model, sites, number, tokens)
        block.handle.__enter__()
        self.blocks.append(block)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), raised=st.sampled_from([None, OwnError(), KeyboardInterrupt()]))
    def leave_any(self, data: st.DataObject, raised: BaseException | None) -> None:
        block = self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))
        block.handle.__exit__(type(raised) if raised else None, raised, None)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def forget_any(self, data: st.DataObject) -> None:
        self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))

    @precondition(lambda self: self.blocks)
    @rule()
    def enter_twice(self) -> None:
        with pytest.raises(HookError, match="entered"):
            self.blocks[-1].handle.__enter__()

    @precondition(lambda self: self.blocks)
    @rule()
    def enter_elsewhere(self) -> None:
        refused: list[bool] = []

        def work() -> None:
            try:
                otl.intervene(self.model, {0: MAPS[0]}).__enter__()
            except HookError:
                refused.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert refused

    @precondition(lambda self: len(self.user) < 3)
    @rule(site=st.sampled_from(POINTS), kind=st.sampled_from(list(KINDS)))
    def user_adds(self, site: tuple[int, str], kind: str) -> None:
        point = self.point(site)
        point.add_hook(lambda x, hook: None, **KINDS[kind])
        self.user.append((point, point.fwd_hooks[0 if kind == "first" else -1]))

    @precondition(lambda self: self.user)
    @rule(data=st.data())
    def user_removes(self, data: st.DataObject) -> None:
        point, handle = self.user.pop(data.draw(st.integers(0, len(self.user) - 1)))
        handle.hook.remove()
        point.fwd_hooks[:] = [one for one in point.fwd_hooks if one is not handle]

    @rule(site=st.sampled_from(POINTS))
    def forward_raises(self, site: tuple[int, str]) -> None:
        def fail(*_: object) -> None:
            raise OwnError

        handle = self.point(site).register_forward_hook(fail)
        with pytest.raises(OwnError):
            logits(self.model, self.batch)
        handle.remove()

    @rule()
    def capture(self) -> None:
        otl.capture(self.model, checkpoints.contrast(1), layers=[1], edits={0: MAPS[0]}, tokens="last")

    @precondition(lambda self: len(self.copies) < 2)
    @rule()
    def copy(self) -> None:
        # A forgotten block must be deleted.
        blocks = [weakref.ref(block) for block in self.blocks]
        self.copies.append((copy.deepcopy(self.model), blocks))

    @invariant()
    def computes_the_active_edits(self) -> None:
        assert bits(self.model, self.batch) == self.expected(self.blocks)

    @invariant()
    def copies_end_with_their_blocks(self) -> None:
        for other, blocks in self.copies:
            alive = [block for ref in blocks if (block := ref()) in self.blocks]
            assert bits(other, self.batch) == self.expected(alive)

    @invariant()
    def exactly_the_hooks_of_the_user_remain(self) -> None:
        """And nothing else has changed once all blocks have ended."""
        tables = hook_tables(self.model)
        present = {one[0] for name, hooks in tables.items() if name.endswith("fwd_hooks") for one in hooks}
        own = {id(handle) for _, handle in self.user}
        assert own <= present
        if not self.blocks:
            assert own == present
            assert self.user or leaked(self.clean, state(self.model, self.batch)) == []

    def expected(self, blocks: list[_Block]) -> str:
        """The bytes of the twin's logits with the edits of the blocks in simple hooks."""
        added = []
        for block in blocks:
            for site, edit in block.edits.items():
                if block.tokens != "generated":
                    added.append(backend(self.twin).hook_point(*site))
                    added[-1].add_hook(_by_hand(edit.to(torch.float32), block.tokens))
        try:
            return bits(self.twin, self.batch)
        finally:
            for point in added:
                point.remove_hooks()

    def teardown(self) -> None:
        while self.blocks:
            self.blocks.pop().handle.__exit__(None, None, None)
        while self.user:
            point, handle = self.user.pop()
            handle.hook.remove()
            point.fwd_hooks[:] = [one for one in point.fwd_hooks if one is not handle]
        self.computes_the_active_edits()
        self.copies_end_with_their_blocks()
        self.exactly_the_hooks_of_the_user_remain()


def _by_hand(edit: Any, tokens: str) -> Any:
    def hook(x: torch.Tensor, hook: object) -> torch.Tensor:
        if tokens != "last":
            return edit(x)
        edited = x.clone()
        edited[:, -1] = edit(x[:, -1])
        return edited

    return hook


def any_order(load: Callable[[], Any], *, examples: int, steps: int) -> None:
    """Run the machine on a model, with another one as its twin."""
    pair = {"model": load(), "twin": load()}
    for one in pair.values():
        evaluated(one, checkpoints.one_batch(one, PROMPTS))
    machine = type("Machine", (Machine,), pair)
    size = settings(max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True)
    run_state_machine_as_test(machine, settings=size)
