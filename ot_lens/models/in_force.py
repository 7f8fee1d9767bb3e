"""Which interventions are in force on a model, so that those of two threads do not stack unseen."""

import threading
from contextlib import suppress
from weakref import WeakKeyDictionary

from torch import nn

from ot_lens.errors import HookError


class Force:
    """Whether an intervention is in force: its hooks edit nothing before they all are on, nor after.

    A copy of the model made inside the block, or a compiled graph, keeps the hook functions; what they share
    with the block is this switch.
    """

    def __init__(self) -> None:
        self.is_on = False
        self.thread = threading.current_thread()

    def on(self) -> None:
        """Let the hooks edit."""
        self.is_on = True

    def off(self) -> None:
        """Let them edit nothing."""
        self.is_on = False


# Who edits a model now. Appended to and removed from in single steps of Python, so that no lock can be left
# held by an interrupt.
_in_force: WeakKeyDictionary[nn.Module, list[Force]] = WeakKeyDictionary()


def claim(model: nn.Module, force: Force) -> None:
    """Note an intervention; edits of two threads at once would be stacked, unseen by either.

    Raises:
        HookError: If another thread has one in force.
    """
    held = _in_force.setdefault(model, [])
    held.append(force)
    other = next((one.thread.name for one in held if one.thread is not force.thread), None)
    if other is not None:
        raise HookError(
            f"thread {other!r} has an intervention in force on this model: leave its block first (a lock "
            "around both serializes them), or give each thread a copy of the model."
        )


def release(model: nn.Module, force: Force) -> None:
    """Forget an intervention."""
    with suppress(ValueError):  # it was never noted
        _in_force.get(model, []).remove(force)
