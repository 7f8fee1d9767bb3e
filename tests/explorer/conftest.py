"""Servers over a finished run, and visitors that fail on any trouble."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ot_lens.explorer.runs import OpenRun
from ot_lens.explorer.start import make_server
from ot_lens.explorer.state import Choices
from tests import generators_tables

LAYERS = (2, 5, 7)  # of `finished_run`


@pytest.fixture(scope="session")
def opened(finished_run: Path) -> Choices:
    return Choices(OpenRun(finished_run))


@contextmanager
def serving(server) -> Iterator[int]:
    """The port of a server that runs in another thread."""
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server.port
    finally:
        server.stop()
        thread.join(10)
        server.close()


@contextmanager
def served(*runs: Path) -> Iterator[str]:
    """The address of a server over runs."""
    with serving(make_server(*runs)) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="session")
def address(finished_run: Path) -> Iterator[str]:
    with served(finished_run) as url:
        yield url


@pytest.fixture
def port(address: str) -> int:
    return int(address.rsplit(":", 1)[1].strip("/"))


@pytest.fixture
def from_tables(tmp_path: Path):
    """A run folder with synthetic tables and nothing else."""

    def write(tables: dict, finished: bool = True) -> Path:
        run = tmp_path / "made"
        (run / "tables").mkdir(parents=True)
        manifest = {"schema_version": 1, "finished": finished, "versions": {}, "model": {}}
        manifest |= {"config": {"model": "some/model"}}
        (run / "manifest.json").write_text(json.dumps(generators_tables.MANIFEST | manifest))
        for name, table in tables.items():
            table.to_parquet(run / "tables" / f"{name}.parquet")
        return run

    return write


@pytest.fixture(scope="session")
def desk(browser):
    """A visitor whose browser caches scripts between pages, as a user's does."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    yield context
    context.close()


@pytest.fixture(scope="module")
def watched():
    """Open pages, and what went wrong on them: script errors, messages of the console, foreign hosts."""
    trouble: list[str] = []

    def told(said):
        if said.type in ("error", "warning", "trace"):
            trouble.append(f"{said.type}: {said.text}")

    def strange(url):
        if url.startswith(("http:", "https:", "ws:", "wss:")) and not url.startswith("http://127.0.0.1:"):
            trouble.append(url)

    def open_page(context, url: str):
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", told)
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda asked: strange(asked.url))
        page.goto(url)
        return page

    return open_page, trouble


@pytest.fixture
def visit(browser, desk, watched):
    """Open a page, with options that of a new visitor; any trouble fails the test."""
    contexts, pages = [], []
    open_page, trouble = watched

    def visited(url: str, **options):
        if options:
            contexts.append(browser.new_context(**options))
        pages.append(open_page(contexts[-1] if options else desk, url))
        return pages[-1]

    yield visited
    for part in (*pages, *contexts):
        part.close()  # before the server stops
    assert trouble == []


@pytest.fixture(scope="module")
def only_page(desk, watched, address):
    page = watched[0](desk, address)
    yield page
    page.close()


@pytest.fixture
def home(only_page, watched):
    """The page of the finished run, opened once, as the test before left it; any trouble fails the test."""
    yield only_page
    assert watched[1] == []
