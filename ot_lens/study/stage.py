"""How a study reports its progress."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def silent(_name: str, _total: int) -> Iterator[Callable[[int], None]]:
    """A stage that shows no progress."""
    yield lambda _done: None
