"""Changes to a model that are undone however their `with` block is left, and which edits are active on it."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformer_lens.hook_points import HookPoint

from ot_lens.errors import HookError

Made = TypeVar("Made")


class Reversible(Generic[Made]):
    """A context manager: changes made on entry, all undone on exit, in reverse order.

    An interrupt may come between any two steps of Python, where contextlib.ExitStack and generators lose the
    step in progress. So each undo is noted before its change is made, does nothing if there is nothing to
    undo, and is started again if it was cut short; an interrupt that skips `__exit__` leaves it to `__del__`.
    """

    _undo: list[Callable[[], object]]

    def __init__(self, make: "Callable[[Reversible[Made]], Made]") -> None:
        """`make` makes the changes on entry through its argument; it must not refer to this object itself."""
        self._make = make
        self._undo = []

    def __enter__(self) -> Made:
        if self._undo:
            raise HookError("This context has been entered already: create another one to nest it.")
        try:
            return self._make(self)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_exception: object) -> None:
        try:
            self._undo_all()
        finally:
            self._undo_all()  # what an interrupt left

    def __del__(self) -> None:
        if hasattr(self, "_undo"):  # an interrupt may come before it is set
            self.__exit__()

    def _undo_all(self) -> None:
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def change(self, undo: Callable[[], object], make: Callable[[], object]) -> None:
        """Make a change; `undo` may be called twice, and before the change is made."""
        self._undo.append(undo)
        make()

    def edit(self, point: HookPoint, function: Callable[..., Any]) -> None:
        """Add a forward hook to a hook point of TransformerLens."""
        self.change(partial(_unhook_point, point, function), partial(point.add_hook, function))

    def before(self, module: nn.Module, function: Callable[..., Any], *, with_kwargs: bool = False) -> None:
        """Call a function before a module runs, as `register_forward_pre_hook` does."""
        add = partial(module.register_forward_pre_hook, function, with_kwargs=with_kwargs)
        self.change(partial(_unhook, module, function), add)

    def after(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Call a function after a module has run, as `register_forward_hook` does."""
        self.change(partial(_unhook, module, function), partial(module.register_forward_hook, function))


def _unhook(module: nn.Module, function: Callable[..., Any]) -> None:
    # By the function, not by PyTorch's handle: an interrupt may have come before there was one.
    for hooks, with_kwargs in (
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        (module._forward_hooks, module._forward_hooks_with_kwargs),
    ):
        for key in [key for key, hook in hooks.items() if hook is function]:
            with_kwargs.pop(key, None)
            hooks.pop(key, None)


def _unhook_point(point: HookPoint, function: Callable[..., Any]) -> None:
    keys = [key for key, hook in point._forward_hooks.items() if _calls(hook, function)]
    point.fwd_hooks[:] = [handle for handle in point.fwd_hooks if handle.hook.id not in keys]
    for key in keys:
        point._forward_hooks.pop(key, None)


def _calls(hook: Callable[..., Any], function: Callable[..., Any]) -> bool:
    """Whether a hook is TransformerLens's wrapper around a function."""
    for cell in getattr(hook, "__closure__", None) or ():
        with suppress(ValueError):  # of an empty cell
            if cell.cell_contents is function:
                return True
    return False


def evaluating(model: nn.Module) -> Reversible[None]:
    """No gradients and no dropout; every module's training flag is restored afterwards."""

    # no_grad rather than inference_mode: tensors that a model caches stay usable in training.
    def evaluate(changes: Reversible[None]) -> None:
        gradients = torch.is_grad_enabled()
        changes.change(partial(torch.set_grad_enabled, gradients), partial(torch.set_grad_enabled, False))
        training = [module for module in model.modules() if module.training]
        changes.change(partial(_set_training, training, True), partial(_set_training, training, False))

    return Reversible(evaluate)


def frozen(model: nn.Module) -> Reversible[None]:
    """Gradients through the model but none for its weights, and no dropout; restored afterwards."""

    def freeze(changes: Reversible[None]) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        changes.change(partial(_require_grad, trained, True), partial(_require_grad, trained, False))
        training = [module for module in model.modules() if module.training]
        changes.change(partial(_set_training, training, True), partial(_set_training, training, False))
        gradients = torch.is_grad_enabled()
        changes.change(partial(torch.set_grad_enabled, gradients), partial(torch.set_grad_enabled, True))

    return Reversible(freeze)


def _require_grad(parameters: Sequence[nn.Parameter], required: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(required)


def _set_training(modules: Sequence[nn.Module], training: bool) -> None:
    for module in modules:
        module.training = training


class ActiveFlag:
    """Whether an intervention is active; copies of the model made inside share it with the block."""

    def __init__(self) -> None:
        self.is_on = False
        self.thread = threading.current_thread()

    def on(self) -> None:
        """Let the hooks edit."""
        self.is_on = True

    def off(self) -> None:
        """Stop the hooks from editing."""
        self.is_on = False


# Interventions that are active on a model. Added and removed in single steps of Python, so that an interrupt
# cannot leave a lock held.
_active: WeakKeyDictionary[nn.Module, list[ActiveFlag]] = WeakKeyDictionary()


def claim(model: nn.Module, flag: ActiveFlag) -> None:
    """Note an active intervention; those of two threads would stack without either knowing."""
    flags = _active.setdefault(model, [])
    flags.append(flag)
    other = next((one.thread.name for one in flags if one.thread is not flag.thread), None)
    if other is not None:
        raise HookError(
            f"Thread {other!r} has an active intervention on this model: leave its block first (a lock "
            "around both serializes them), or give each thread a copy of the model."
        )


def release(model: nn.Module, flag: ActiveFlag) -> None:
    """Remove an intervention from the active ones."""
    with suppress(ValueError):  # it was never noted
        _active.get(model, []).remove(flag)
