"""Changes to a model that are taken back however their `with` block is left."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

from torch import nn
from transformer_lens.hook_points import HookPoint

from ot_lens.errors import HookError

Made = TypeVar("Made")


class Changes(Generic[Made]):
    """A context manager: changes made on entry, all taken back on exit, in reverse order.

    An interrupt (KeyboardInterrupt, a signal handler that raises) may fall between any two steps of Python,
    where contextlib.ExitStack and generators lose the step under way. So here the way back is noted before
    its change is made, does nothing where there is nothing to take back, and is started again when it was
    cut short.

    Two things Python leaves open. An interrupt in the instant between a block's last step and the first of
    `__exit__` passes `__exit__` over; what was changed is then taken back when the object is let go, so at
    the latest with the interrupt's traceback. And a second interrupt may cut short what the first began.
    """

    _ways_back: list[Callable[[], object]]

    def __init__(self, make: "Callable[[Changes[Made]], Made]") -> None:
        """Keep what is to be done.

        Args:
            make: Makes the changes through this object's methods, on entry; returns what `as` names. It must
                hold no reference to this object.
        """
        self._make = make
        self._ways_back = []

    def __enter__(self) -> Made:
        if self._ways_back:
            raise HookError("this context is entered already: make another one to enter it a second time.")
        try:
            return self._make(self)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_exception: object) -> None:
        try:
            self._take_back()
        finally:
            self._take_back()  # what an interrupt left of it

    def __del__(self) -> None:
        if hasattr(self, "_ways_back"):  # not where an interrupt came before there was any
            self.__exit__()

    def _take_back(self) -> None:
        while self._ways_back:
            self._ways_back[-1]()
            self._ways_back.pop()

    def change(self, way_back: Callable[[], object], make: Callable[[], object]) -> None:
        """Make a change.

        Args:
            way_back: Takes it back; may be called twice, and before the change is made.
            make: Makes it.
        """
        self._ways_back.append(way_back)
        make()

    def edit(self, point: HookPoint, function: Callable[..., Any]) -> None:
        """Add a forward hook to a hook point of TransformerLens."""
        self.change(partial(_unhook_point, point, function), partial(point.add_hook, function))

    def before(self, module: nn.Module, function: Callable[..., Any], *, with_kwargs: bool = False) -> None:
        """Call a function before a module runs, as `register_forward_pre_hook` does."""
        add = partial(module.register_forward_pre_hook, function, with_kwargs=with_kwargs)
        self.change(partial(_unhook, module, function), add)

    def after(self, module: nn.Module, function: Callable[..., Any]) -> None:
        """Call a function when a module has run, as `register_forward_hook` does."""
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
