"""Figures drawn by other processes while this one draws as well.

Each is a fresh interpreter that reads descriptions and answers with the bytes of files: `multiprocessing`
would run the caller's script again, and a fork would copy its threads. They write nothing, and end with
their caller.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from threading import Lock
from typing import Any

from matplotlib.figure import Figure

from ot_lens.plots.description import Description
from ot_lens.plots.paper.canvas import styled
from ot_lens.plots.paper.render import draw

# For fewer figures a process is not worth starting.
FIGURES = 4
# No time stamps: the same figure gives the same bytes.
STAMPS: Mapping[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
START = "from ot_lens.plots.paper.painters import serve; serve()"
Job = tuple[Description, Sequence[str], str]  # what to draw, formats, style
Pictures = Mapping[str, bytes]  # by format
Painter = subprocess.Popen[bytes]


def laid_out(description: Description, style: str) -> Figure:
    """A figure whose layout, a third of the time of drawing, is computed once for all formats."""
    figure = draw(description, style=style)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    with styled(style):  # "none" would leave an engine that has every figure drawn twice
        figure.set_layout_engine(None)
    return figure


@contextmanager
def painters(processes: int, figures: int) -> Iterator[Sequence[Painter]]:
    """The processes that help this one to draw some figures; none for few of them."""
    started = [_start() for _ in range(min(processes - 1, figures // FIGURES))]
    try:
        yield started
    finally:
        for painter in started:
            painter.kill()
            painter.communicate()


def painted(helpers: Sequence[Painter], jobs: Sequence[Job]) -> Iterator[Pictures | None]:
    """The pictures of each job in order; None where the caller has to draw by itself.

    Helpers begin with the last job, so that the caller, who begins with the first, draws as much as they do.
    """
    waiting, lock = list(range(len(jobs))), Lock()
    found: list[Future[Pictures | None]] = [Future() for _ in jobs]

    def take(which: int) -> int | None:
        with lock:
            return waiting.pop(which) if waiting else None

    def help_drawing(helper: Painter) -> None:
        while (last := take(-1)) is not None:
            pictures = None
            try:
                pictures = _ask(helper, jobs[last])
            finally:  # whatever fails, even unpickling, leaves the figure to the caller
                found[last].set_result(pictures)

    with ThreadPoolExecutor(max(1, len(helpers))) as pool:
        for helper in helpers:
            pool.submit(help_drawing, helper)
        try:
            for index in range(len(jobs)):
                yield None if take(0) == index else found[index].result()
        finally:
            waiting.clear()


def _start() -> Painter:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-P", "-c", START]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # noqa: S603


def _ask(painter: Painter, job: Job) -> Pictures | None:
    """None if the process could not draw it."""
    assert painter.stdin is not None
    assert painter.stdout is not None
    painter.stdin.write(pickle.dumps(job))
    painter.stdin.flush()
    pictures: Pictures | None = pickle.load(painter.stdout)  # noqa: S301  of a process of our own
    return pictures


def serve() -> None:
    """Answer jobs from standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at a terminal, Ctrl-C is for the caller
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    with suppress(EOFError, BrokenPipeError):
        while True:
            pickle.dump(pictures(*pickle.load(sys.stdin.buffer)), answers)  # noqa: S301  of our own caller
            answers.flush()


def pictures(description: Description, formats: Sequence[str], style: str) -> Pictures | None:
    """A figure in each format; None if it fails, for the caller draws it again and reports the error."""
    drawn = {}
    try:
        figure = laid_out(description, style)
        with styled(style):
            for suffix in formats:
                file = BytesIO()
                figure.savefig(file, format=suffix, metadata=STAMPS[suffix])
                drawn[suffix] = file.getvalue()
    except Exception:  # noqa: BLE001
        return None
    return drawn
