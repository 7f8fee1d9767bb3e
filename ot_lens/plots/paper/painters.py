"""Figures drawn by helpers, which answer with the bytes of files, while this process draws as well."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from io import BytesIO
from threading import Lock
from typing import Any

from matplotlib.figure import Figure

from ot_lens.io.helpers import Helper, helpers
from ot_lens.plots.description import Description
from ot_lens.plots.paper.canvas import styled
from ot_lens.plots.paper.render import draw

# For fewer figures a process is not worth starting.
FIGURES = 4
# No time stamps: the same figure gives the same bytes.
STAMPS: Mapping[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
Job = tuple[Description, Sequence[str], str]  # what to draw, formats, style
Pictures = Mapping[str, bytes]  # by format


def laid_out(description: Description, style: str) -> Figure:
    """A figure whose layout, a third of the time of drawing, is computed once for all formats."""
    figure = draw(description, style=style)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    with styled(style):  # "none" would leave an engine that has every figure drawn twice
        figure.set_layout_engine(None)
    return figure


def painters(processes: int, figures: int) -> AbstractContextManager[Sequence[Helper]]:
    """The processes that help this one to draw some figures; none for few of them."""
    return helpers(min(processes - 1, figures // FIGURES), _painter)


def _painter() -> Any:
    return pictures


def painted(helping: Sequence[Helper], jobs: Sequence[Job]) -> Iterator[Pictures | None]:
    """The pictures of each job in order; None where the caller has to draw by itself.

    Helpers begin with the last job, so that the caller, who begins with the first, draws as much as they do.
    """
    waiting, lock = list(range(len(jobs))), Lock()
    found: list[Future[Pictures | None]] = [Future() for _ in jobs]

    def take(which: int) -> int | None:
        with lock:
            return waiting.pop(which) if waiting else None

    def help_drawing(helper: Helper) -> None:
        while (last := take(-1)) is not None:
            pictures = None
            try:
                pictures = helper.ask(*jobs[last])
            finally:  # whatever fails, even unpickling, leaves the figure to the caller
                found[last].set_result(pictures)

    with ThreadPoolExecutor(max(1, len(helping))) as pool:
        for helper in helping:
            pool.submit(help_drawing, helper)
        try:
            for index in range(len(jobs)):
                yield None if take(0) == index else found[index].result()
        finally:
            waiting.clear()


def pictures(description: Description, formats: Sequence[str], style: str) -> Pictures:
    """A figure in each format."""
    drawn = {}
    figure = laid_out(description, style)
    with styled(style):
        for suffix in formats:
            file = BytesIO()
            figure.savefig(file, format=suffix, metadata=STAMPS[suffix])
            drawn[suffix] = file.getvalue()
    return drawn
