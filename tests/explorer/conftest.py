"""One small run for all tests of the explorer, servers over it, and visitors who fail on any trouble."""

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ot_lens as otl
from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.start import make_server
from ot_lens.explorer.state import Choices
from ot_lens.study import parse_config, run_study
from tests import generators_tables

LAYERS = (2, 5, 7)
PROMPTS = 12


def write_prompts(path: Path) -> Path:
    """A few of the embedded prompts, in a file of the user's own."""
    full = otl.load_prompts("organism")
    splits = {
        name: {
            label: [{"text": p.text, "answer": p.answer, "answers": p.answers} for p in group[:PROMPTS]]
            for label, group in (("harmful", split.harmful), ("harmless", split.harmless))
        }
        for name, split in (("train", full.train), ("val", full.val), ("test", full.test))
    }
    path.write_text(json.dumps({"splits": splits, "licence": "MIT"}))
    return path


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, without_figures) -> Path:
    """A finished run of three layers and three methods."""
    folder = tmp_path_factory.mktemp("explorer")
    settings = {
        "prompts": str(write_prompts(folder / "few.json")),
        "layers": list(LAYERS),
        "methods": ["directional_ablation", "rfa", {"name": "pca_ot", "k": 1}, {"name": "pca_ot", "k": 2}],
        "measures": ["refusal_rate", "exact_answer_rate", "refusal_score", "kl"],
        "controls": ["random_subspace"],
        "control_draws": 2,
        "sufficiency": False,
        "search_size": 0,
        "permutations": 39,
        "bootstrap": 39,
        "max_new_tokens": 12,
    }
    with without_figures():
        run_study(parse_config(settings), folder / "small")
    return folder / "small"


@pytest.fixture(scope="session")
def opened(small_run: Path) -> Choices:
    return Choices(OpenRun(small_run))


@contextmanager
def served(*runs: Path, **options) -> Iterator[str]:
    """The address of a server over runs."""
    server = make_server(*runs, **options)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}/"
    finally:
        server.stop()
        thread.join(10)
        server.close()


@pytest.fixture(scope="session")
def address(small_run: Path) -> Iterator[str]:
    with served(small_run) as url:
        yield url


@pytest.fixture
def copied(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(small_run, tmp_path / "copy"))


@pytest.fixture
def from_tables(tmp_path: Path):
    """A run folder that holds made-up tables and nothing else."""

    def write(tables: dict, finished: bool = True) -> Path:
        run = tmp_path / "made"
        (run / "tables").mkdir(parents=True)
        manifest = {
            "schema_version": 1,
            "finished": finished,
            "config": {"model": "some/model"},
            "versions": {},
            "model": {},
        }
        (run / "manifest.json").write_text(json.dumps({**generators_tables.MANIFEST, **manifest}))
        for name, table in tables.items():
            table.to_parquet(run / "tables" / f"{name}.parquet")
        return run

    return write


@pytest.fixture(scope="session")
def desk(browser):
    """One visitor at a desk, whose browser keeps scripts between pages, as a user's does."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    yield context
    context.close()


@pytest.fixture
def visit(browser, desk):
    """Open a page. Script errors, failed requests and strange hosts fail the test.

    Without options it is a page of the same visitor; with options that of a new one.
    """
    contexts, pages, trouble = [], [], []

    def open_page(url: str, **options):
        context = browser.new_context(**options) if options else desk
        if options:
            contexts.append(context)
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", told)
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda asked: strange(asked.url))
        page.goto(url)
        return page

    def told(said):
        if said.type in ("error", "warning", "trace"):
            trouble.append(f"{said.type}: {said.text}")

    def strange(url):
        if url.startswith(("http:", "https:", "ws:", "wss:")) and not url.startswith("http://127.0.0.1:"):
            trouble.append(url)

    yield open_page
    for part in (*pages, *contexts):
        part.close()
    assert trouble == []
