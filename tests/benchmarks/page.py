"""The explorer: from the key that chooses a layer to the last change of a view, in headless Chromium.

Over the stored views of a run of SmolLM2 if `make real` has made one, else of synthetic tables of its depth.
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests import generators_tables
from tests.benchmarks.measure import Row, within
from tests.chromium import CHROMIUM_FLAGS

VIEWS = ("plane", "interchange", "contributions", "readout", "spectra", "methods")
REAL = Path(__file__).resolve().parents[2] / "runs" / "smollm2-early"
LAYERS, BAR = 30, 0.3
# A view that has not changed for this many milliseconds is complete.
QUIET, PATIENCE = 350, 10_000
WATCH = """name => {
  const view = document.querySelector(`.of-run[data-view=${name}]`);
  const changed = () => requestAnimationFrame(() => { window.ended = performance.now(); });
  const all = {subtree: true, childList: true, characterData: true, attributes: true};
  new MutationObserver(changed).observe(view, all);
  const begin = () => { window.began = performance.now(); window.ended = null; };
  document.addEventListener('keydown', begin, true);
}"""
ENDED = f"() => window.ended !== null && performance.now() - window.ended > {QUIET}"


def page_updates() -> Iterator[Row]:
    """Median over the layers, each visited for the first time; every view with a server of its own."""
    path = shutil.which("chromium")
    if path is None:
        print("page bench: not run, Chromium is not installed")
        return
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        run = REAL if REAL.is_dir() else _synthetic(Path(folder) / "synthetic")
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        for view in VIEWS:
            with _listening(run) as address:
                tab = chromium.new_page(viewport={"width": 1280, "height": 1000})
                times = _first_visits(tab, address, view)
                tab.close()
            quartile, _, _ = statistics.quantiles(times, n=4)
            sizes: dict[str, Any] = {
                "run": run.name,
                "layers": len(times),
                "lower quartile": f"{quartile:.3f} s",
            }
            sizes["longest"] = f"{max(times):.3f} s"
            name = f"explorer, another layer of {view}"
            yield within(name, statistics.median(times), "the bar of an update", BAR, 1.0, **sizes)
        chromium.close()


def _synthetic(run: Path) -> Path:
    (run / "tables").mkdir(parents=True)
    (run / "manifest.json").write_text(json.dumps(generators_tables.MANIFEST))
    for name, table in generators_tables.tables(LAYERS).items():
        table.to_parquet(run / "tables" / f"{name}.parquet")
    return run


@contextmanager
def _listening(run: Path) -> Iterator[str]:
    """The address of the command in a process of its own."""
    command = [sys.executable, "-m", "ot_lens.cli", "explore", str(run), "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next(line for line in process.stdout or () if "http://" in line)
            yield "http://" + line.split("http://")[1].split()[0]
        finally:
            process.terminate()


def _first_visits(tab: Any, address: str, view: str) -> list[float]:
    """Seconds of one update for each layer but the first, from the first to the last."""
    tab.goto(address)
    place = f".of-run[data-view={view}]"
    tab.locator(place).scroll_into_view_if_needed()
    tab.locator(f"{place} .main-svg").first.wait_for(state="attached")
    tab.evaluate(WATCH, view)
    tab.evaluate("document.querySelector('#ruler').focus({preventScroll: true})")
    times = []
    for key in ("Home", *["ArrowRight"] * (tab.locator("#ruler [data-layer]").count() - 1)):
        tab.keyboard.press(key)
        tab.wait_for_function(ENDED, timeout=PATIENCE)
        times.append(tab.evaluate("window.ended - window.began") / 1000)
    return times[1:]


BENCHES = (page_updates,)
