"""Any order of entering, leaving, hooking, copying and raising: exactly the entered edits are active."""

import copy
import random
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

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
    only_look,
    random_map,
    state,
)

MAPS = [random_map(seed) for seed in range(3)]
POINTS = [(layer, hook) for layer in (0, 1, 3) for hook in ("resid_pre", "mlp_out", "resid_post")]
KINDS: list[dict[str, Any]] = [{}, {"is_permanent": True}, {"level": 3}, {"prepend": True}]
STEPS = ("enter", "enter", "leave", "forget", "enter_twice", "add_hook", "remove_hook", "raise_error", "copy")


class _Block:
    def __init__(self, model: Any, draw: random.Random) -> None:
        self.edits = {site: draw.choice(MAPS) for site in draw.sample(POINTS, draw.randint(1, 3))}
        self.tokens = draw.choice(TOKEN_SCOPES)
        self.handle = otl.intervene(model, self.edits, self.tokens)
        self.handle.__enter__()


class Machine:
    """A model in use; `twin` computes what it must compute, with hooks added by hand."""

    def __init__(self, model: Any, twin: Any, draw: random.Random) -> None:
        self.model, self.twin, self.draw = model, twin, draw
        self.batch = checkpoints.one_batch(model, PROMPTS)
        self.clean = state(model, self.batch)
        self.blocks: list[_Block] = []
        self.user: list[tuple[Any, Any]] = []
        self.copies: list[tuple[Any, list[weakref.ref[_Block]]]] = []

    def point(self) -> Any:
        return backend(self.model).hook_point(*self.draw.choice(POINTS))

    def any_block(self) -> _Block:
        return self.blocks.pop(self.draw.randrange(len(self.blocks)))

    def enter(self) -> None:
        if len(self.blocks) < 4:
            self.blocks.append(_Block(self.model, self.draw))

    def leave(self) -> None:
        if self.blocks:
            raised = self.draw.choice([None, OwnError(), KeyboardInterrupt()])
            self.any_block().handle.__exit__(type(raised) if raised else None, raised, None)

    def forget(self) -> None:
        if self.blocks:
            self.any_block()

    def enter_twice(self) -> None:
        if self.blocks:
            with pytest.raises(HookError, match="entered"):
                self.blocks[-1].handle.__enter__()

    def add_hook(self) -> None:
        point, kind = self.point(), self.draw.choice(KINDS)
        point.add_hook(only_look, **kind)
        self.user.append((point, point.fwd_hooks[0 if "prepend" in kind else -1]))

    def remove_hook(self) -> None:
        if self.user:
            point, handle = self.user.pop(self.draw.randrange(len(self.user)))
            handle.hook.remove()
            point.fwd_hooks[:] = [one for one in point.fwd_hooks if one is not handle]

    def raise_error(self) -> None:
        def fail(*_: object) -> None:
            raise OwnError

        handle = self.point().register_forward_hook(fail)
        with pytest.raises(OwnError):
            logits(self.model, self.batch)
        handle.remove()

    def copy(self) -> None:
        if len(self.copies) < 2:  # weak references, since a forgotten block must be deleted
            self.copies.append((copy.deepcopy(self.model), [weakref.ref(block) for block in self.blocks]))

    def check(self) -> None:
        """The model computes its edits, and copies end with their blocks; nothing else has changed."""
        assert bits(self.model, self.batch) == self.expected(self.blocks)
        for other, blocks in self.copies:
            alive = [block for ref in blocks if (block := ref()) in self.blocks]
            assert bits(other, self.batch) == self.expected(alive)
        tables = hook_tables(self.model)
        present = {one[0] for name, hooks in tables.items() if name.endswith("fwd_hooks") for one in hooks}
        own = {id(handle) for _, handle in self.user}
        assert own <= present
        if not self.blocks:
            assert own == present
            assert self.user or leaked(self.clean, state(self.model, self.batch)) == []

    def expected(self, blocks: list[_Block]) -> str:
        """The bytes of the twin's logits with the edits of the blocks in simple hooks."""
        edited = [(site, edit, block.tokens) for block in blocks for site, edit in block.edits.items()]
        points = [backend(self.twin).hook_point(*site) for site, _, _ in edited]
        for point, (_, edit, tokens) in zip(points, edited, strict=True):
            if tokens != "generated":
                point.add_hook(_by_hand(edit.to(torch.float32), tokens))
        try:
            return bits(self.twin, self.batch)
        finally:
            for point in points:
                point.remove_hooks()


def _by_hand(edit: Any, tokens: str) -> Any:
    def hook(x: torch.Tensor, hook: object) -> torch.Tensor:
        if tokens != "last":
            return edit(x)
        edited = x.clone()
        edited[:, -1] = edit(x[:, -1])
        return edited

    return hook


def any_order(load: Callable[[], Any], *, examples: int, steps: int) -> None:
    """Random orders of use of a model, with another one as its twin; all blocks and hooks end with each."""
    model, twin = load(), load()
    for one in (model, twin):
        evaluated(one, checkpoints.one_batch(one, PROMPTS))
    for seed in range(examples):
        draw = random.Random(seed)
        machine = Machine(model, twin, draw)
        for _ in range(steps):
            getattr(machine, draw.choice(STEPS))()
            machine.check()
        while machine.blocks:
            machine.leave()
        while machine.user:
            machine.remove_hook()
        machine.check()
