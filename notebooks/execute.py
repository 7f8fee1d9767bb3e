"""Run the notebooks and keep their outputs, so that they read well without running them.

    python notebooks/execute.py                 all of them, in place
    python notebooks/execute.py notebooks/01*   some of them

What differs from run to run without meaning anything (times, ids, counters, progress bars) is left out. A
plotly figure is kept as the picture that it shows at first, drawn by Chromium; controls, which need a running
kernel, as the output that they show at first.
"""

import base64
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

PNG = "image/png"
PLOTLY = "application/vnd.plotly.v1+json"
CONTROLS = "application/vnd.jupyter.widget-view+json"
STATES = "application/vnd.jupyter.widget-state+json"
HERE = Path(__file__).resolve().parent
WIDTH = 900
LOOKS = 10  # seconds until the reply to a cell is looked for again
# The second filter: ipykernel warns of itself when it is shut down. No notebook shows the files of figures in
# a run folder, which take as long as everything else in a study.
PREPARATION = """
import warnings

warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="For consistency across implementations")

from ot_lens import plots

plots.draw_all = lambda *_, **__: plots.Drawn(())
"""


class Client(NotebookClient):
    """A client that looks for a reply every few seconds, since pyzmq now and then loses the wake-up for one.

    nbclient would then wait for all of a cell's `patience` in seconds, and only then see that it is there.
    """

    patience = 300
    _late: tuple[Any, float] = (None, 0.0)

    async def _async_handle_timeout(self, timeout: int, cell: Any = None) -> dict[str, Any] | None:
        """Look again, unless the cell's time is over."""
        if self._late[0] is not cell:
            self._late = cell, monotonic() + self.patience - timeout
        if monotonic() < self._late[1]:
            return None
        return await super()._async_handle_timeout(self.patience, cell)


def executed(*paths: Path, preparation: str = PREPARATION) -> list[nbformat.NotebookNode]:
    """Notebooks run from top to bottom, in one kernel that forgets in between; a warning is an error.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
        ValueError: If a control's function fails, which leaves its cell running.
    """
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    whole = nbformat.v4.new_notebook()
    for notebook in notebooks:
        whole.cells += [nbformat.v4.new_code_cell("%reset -f\n" + preparation), *notebook.cells]
    client = Client(whole, timeout=LOOKS, resources={"metadata": {"path": str(paths[0].parent)}})
    client.execute(env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    for notebook in notebooks:  # the cells are the same objects
        notebook.metadata = whole.metadata
    return [normalized(notebook) for notebook in notebooks]


def normalized(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what means nothing: see the top of this file."""
    states = notebook.metadata.get("widgets", {}).get(STATES, {}).get("state", {})
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    code = (cell for cell in notebook.cells if cell.cell_type == "code")
    for number, cell in enumerate(code, start=1):
        cell.execution_count, cell.metadata = number, {}
        cell.outputs = [kept for output in cell.outputs for kept in _kept(output, states)]
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
    return notebook


def _kept(output: nbformat.NotebookNode, states: dict[str, Any]) -> Iterator[nbformat.NotebookNode]:
    """An output as it is committed; none for a progress bar, those inside it for a control."""
    if output.output_type == "error":
        raise ValueError("\n".join(output.traceback))
    if output.output_type == "stream":
        if output.name == "stdout":
            yield output
        return
    data = output.get("data", {})
    if CONTROLS in data:
        for shown in _shown_by(data[CONTROLS]["model_id"], states):
            yield from _kept(nbformat.from_dict(shown), states)
        return
    output.metadata = {}
    if "execution_count" in output:
        output = nbformat.v4.new_output("display_data", data=data)
    if PLOTLY in data:
        output.data = {PLOTLY: data[PLOTLY], "text/plain": "an interactive figure"}
    yield output


def _shown_by(model: str, states: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Outputs captured by a control or by one inside it."""
    state = states.get(model, {}).get("state", {})
    yield from state.get("outputs", ())
    for child in state.get("children", ()):
        yield from _shown_by(child.removeprefix("IPY_MODEL_"), states)


def with_pictures(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Plotly figures replaced by pictures of them, which a forge shows, and every picture made small."""
    outputs = [
        out for cell in notebook.cells for out in cell.get("outputs", ()) if PLOTLY in out.get("data", {})
    ]
    for output, picture in zip(outputs, _pictures([out.data.pop(PLOTLY) for out in outputs]), strict=True):
        output.data[PNG] = base64.b64encode(picture).decode()
    for data in (out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", ())):
        if PNG in data:
            data[PNG] = base64.b64encode(_small(base64.b64decode(data[PNG]))).decode()
    return notebook


def _small(picture: bytes) -> bytes:
    """A PNG in 128 colours, at most twice as wide as a page of a forge."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(picture)) as image:
        image.thumbnail((2 * WIDTH, 10 * WIDTH))
        image.convert("RGB").quantize(128).save(small, "PNG", optimize=True)
    return small.getvalue()


def _pictures(figures: list[Any]) -> Iterator[bytes]:
    import plotly.graph_objects as go
    from playwright.sync_api import sync_playwright

    if not figures:
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 700})
        for figure in figures:
            drawn = go.Figure(figure, skip_invalid=True)
            height = drawn.layout.height or 450
            drawn.update_layout(width=WIDTH, height=height, paper_bgcolor="white")
            page.set_content(drawn.to_html(include_plotlyjs=True, config={"displayModeBar": False}))
            page.wait_for_selector(".main-svg")
            yield page.locator(".plotly-graph-div").screenshot()
        browser.close()


def main() -> None:
    """Run the notebooks named on the command line, or all of them, in place."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        [notebook] = executed(path)
        nbformat.write(with_pictures(notebook), path)
        sys.stdout.write(f"{path.name}: {path.stat().st_size / 1024:.0f} KB\n")


if __name__ == "__main__":
    main()
