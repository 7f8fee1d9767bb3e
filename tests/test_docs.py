"""The documentation: every name in it exists, every example marked to run does, and the site builds."""

import ast
import contextlib
import inspect
import io
import re
import shlex
import socket
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

import ot_lens
from ot_lens import plots
from ot_lens.cli import app
from ot_lens.errors import ConfigError
from ot_lens.plots import screen
from ot_lens.study.config import parse_config
from tests.printed import assert_alike

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUN, RUN_HERE = "<!-- run -->", "<!-- run in the repository -->"
WRITE = re.compile(r"<!-- write (\w+\.\w+) -->")
MODULES = {"otl": ot_lens, "ot_lens": ot_lens, "plots": plots, "screen": screen}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, what stands before it and after it."""

    language: str
    text: str
    mark: str
    shown: str | None


def named(page: Path) -> str:
    return page.relative_to(DOCS.parent).as_posix()


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))


def blocks(page: Path) -> Iterator[Block]:
    found = tokens(page)
    for index, token in enumerate(found):
        if token.type != "fence":
            continue
        before = found[index - 1] if index else None
        mark = before.content.strip() if before is not None and before.type == "html_block" else ""
        after = found[index + 1] if index + 1 < len(found) else None
        shown = after.content if after is not None and after.type == "fence" and not after.info else None
        yield Block(token.info.strip(), token.content, mark, shown)


def spans(page: Path) -> list[str]:
    children = [child for token in tokens(page) for child in token.children or []]
    return [child.content for child in children if child.type == "code_inline"]


def python_trees(page: Path) -> list[ast.Module]:
    """Every Python example, the ones that need a model of one's own included, and code spans that parse."""
    trees = [ast.parse(block.text) for block in blocks(page) if block.language == "python"]
    for span in spans(page):
        with contextlib.suppress(SyntaxError):
            trees.append(ast.parse(span))
    return trees


def resolved(node: ast.expr) -> Any:
    """The object that a dotted name of ot_lens stands for, None for anything else; fails when it is none."""
    if isinstance(node, ast.Name):
        return MODULES.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    owner = resolved(node.value)
    if not inspect.ismodule(owner) and not inspect.isclass(owner):
        return None
    if inspect.ismodule(owner):
        with contextlib.suppress(ImportError):
            __import__(f"{owner.__name__}.{node.attr}")
    fields = getattr(owner, "__dataclass_fields__", {}) | getattr(owner, "model_fields", {})
    assert hasattr(owner, node.attr) or node.attr in fields, f"{ast.unparse(node)} does not exist"
    return getattr(owner, node.attr, None)


def check_call(call: ast.Call) -> None:
    """Every keyword of a call of ot_lens is one of its parameters."""
    target = resolved(call.func)
    if target is None:
        return
    accepted = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values()):
        return
    wrong = {word.arg for word in call.keywords if word.arg} - set(accepted)
    assert not wrong, f"{ast.unparse(call.func)} takes no {wrong}"


def check_code(code: str | ast.Module) -> None:
    """Names, keywords and imports of ot_lens in a piece of Python exist."""
    for node in ast.walk(ast.parse(code) if isinstance(code, str) else code):
        if isinstance(node, ast.Attribute):
            resolved(node)
        elif isinstance(node, ast.Call):
            check_call(node)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ot_lens"):
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            for alias in node.names:
                known = hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
                assert known, f"{node.module}.{alias.name} does not exist"


def commands() -> dict[str, click.Command]:
    """Every command of `ot-lens` by its words, groups included."""
    found: dict[str, click.Command] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        found[" ".join(words)] = command
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, (*words, name))

    walk(typer.main.get_command(app), ())
    return found


def options(command: Any) -> set[str]:
    return {"--help"} | {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}


def check_command_line(line: str) -> None:
    words, known = shlex.split(line.partition("#")[0])[1:], commands()
    name = " ".join(words[:2]) if " ".join(words[:2]) in known else "".join(words[:1])
    if name.startswith("-"):
        name = ""
    assert name in known, f"no command in {line!r}"
    wrong = {word.partition("=")[0] for word in words if word.startswith("--")} - options(known[name])
    assert not wrong, f"{line!r} has no {wrong}"


# ------------------------------------------------------------------------------------------- examples
@pytest.fixture
def as_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registries: None
) -> Iterator[Callable[[str], None]]:
    """An empty folder whose modules can be imported; a page that is served is left at once.

    Called with a page's text: of the figures of a run, only those that it mentions are drawn.
    """
    from ot_lens.explorer.serving import Server

    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(Server, "serve", lambda _: None)
    written, before = plots.gallery._written, set(sys.modules)

    def few(text: str) -> None:
        monkeypatch.setattr(
            "ot_lens.plots.gallery._written",
            lambda stem, *job: written(stem, *job) if stem.name in text else [],
        )

    yield few
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


# Two studies of SmolLM2: three quarters of a minute.
LONG = DOCS / "first-day.md"
EXAMPLES = [
    pytest.param(page, marks=pytest.mark.campaign) if page == LONG else page
    for page in PAGES
    if RUN[:8] in page.read_text("utf-8")
]


@pytest.mark.parametrize("page", EXAMPLES, ids=named)
def test_examples_run_and_print_what_is_shown(
    page: Path,
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_a_reader: Callable[[str], None],
    command: Callable[..., tuple[int, str, str]],
    request: pytest.FixtureRequest,
) -> None:
    if "smollm2" in "".join(block.text for block in blocks(page) if block.mark == RUN):
        request.getfixturevalue("smollm2_installed")
    as_a_reader(page.read_text("utf-8"))
    space: dict[str, Any] = {}
    for block in blocks(page):
        if name := WRITE.fullmatch(block.mark):
            (tmp_path / name[1]).write_text(block.text)
        if block.mark not in (RUN, RUN_HERE):
            continue
        monkeypatch.chdir(repository if block.mark == RUN_HERE else tmp_path)
        if not block.language:
            for line in block.text.splitlines():
                run_command(line, command)
            continue
        assert block.language == "python"
        printed = executed(block.text, space)
        if block.shown is not None:
            assert_alike(printed, block.shown)


def run_command(line: str, command: Callable[..., tuple[int, str, str]]) -> None:
    """A command line of ot-lens; the page is served on any port, and no browser opens."""
    program, *arguments = shlex.split(line)
    assert program == "ot-lens"
    if arguments[0] == "explore":
        arguments += ["--port", "0", "--no-browser"]
    code, printed, errors = command(*arguments)
    assert code == 0, f"{line}: {printed} {errors}"


def executed(code: str, space: dict[str, Any]) -> str:
    """What a block prints, its last expression shown as a notebook would."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "example", "exec"), space)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "example", "eval"), space)
            if value is not None:
                print(value)
    return printed.getvalue()


def test_a_command_that_fails_is_noticed(command: Callable[..., tuple[int, str, str]]) -> None:
    with pytest.raises(AssertionError, match=r"absent\.yaml"):
        run_command("ot-lens run absent.yaml", command)


# ---------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_names_and_keywords_of_examples_exist(page: Path) -> None:
    for tree in python_trees(page):
        check_code(tree)


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (check_code, "otl.no_such_name(1)"),
        (check_code, "otl.capture(m, p, layerz=[1])"),
        (check_command_line, "ot-lens nonsense"),
        (check_command_line, "ot-lens figures runs/demo --no-such-option"),
        (partial(assert_alike, "score 8.3"), "score 7.8"),
        (partial(assert_alike, "a b"), "a c"),
    ],
)
def test_the_checks_notice_what_is_wrong(check: Callable[[str], None], wrong: str) -> None:
    with pytest.raises(AssertionError):
        check(wrong)


def test_the_api_pages_hold_every_public_name_once() -> None:
    text = "\n".join(page.read_text("utf-8") for page in sorted((DOCS / "api").glob("*.md")))
    documented = re.findall(r"^::: ot_lens\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(set(documented) - {"plots", "errors"}) == sorted(ot_lens.__all__)
    assert len(documented) == len(set(documented))


@pytest.mark.parametrize("page", [DOCS.parent / "README.md", *PAGES], ids=named)
def test_commands_options_and_targets_exist(page: Path, repository: Path) -> None:
    every_option = set.union(*(options(command) for command in commands().values()))
    targets = set(re.findall(r"^([a-z0-9-]+):", (repository / "Makefile").read_text(), flags=re.MULTILINE))
    lines = [line for block in blocks(page) if not block.language for line in block.text.splitlines()]
    for written in (*lines, *spans(page)):
        line = written.strip().removeprefix(".venv/bin/")
        if line.startswith("ot-lens ") and "|" not in line:
            check_command_line(line)
        elif line.startswith("make "):
            assert line.split()[1] in targets, f"{line!r} is no target"
        elif re.fullmatch(r"--[a-z-]+", line):
            assert line in every_option, f"no command has {line}"


def test_configurations_are_valid() -> None:
    shown = [block.text for page in PAGES for block in blocks(page) if block.language == "yaml"]
    for text in shown:
        parse_config(yaml.safe_load(text))
    with pytest.raises(ConfigError):
        parse_config(yaml.safe_load(shown[0]) | {"modle": "organism"})


# ---------------------------------------------------------------------------------------------- paper
PAPER = DOCS / "paper" / "paper.md"
# Where the numbers of its findings are published.
SOURCES = (DOCS / "real-model.md", DOCS / "methods.md", DOCS.parent / "README.md")
MEASURED = re.compile(r"\d+\.\d+|\d+ to \d+")


def test_the_paper_cites_what_is_in_its_bibliography() -> None:
    cited = set(re.findall(r"@([a-z]+\d*)", PAPER.read_text("utf-8")))
    entries = re.findall(r"^@\w+\{(\w+),", PAPER.with_suffix(".bib").read_text("utf-8"), flags=re.M)
    assert len(entries) == len(set(entries)) > 10
    assert cited == set(entries)


def test_the_paper_shows_figures_that_are_here_and_that_a_run_draws() -> None:
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAPER.read_text("utf-8"))
    assert len(shown) == 2
    for figure in shown:
        assert (PAPER.parent / figure).is_file()
        assert Path(figure).stem in {entry.name for entry in plots.GALLERY}
        assert Path(figure).parent.as_posix() == "../../figures/smollm2", "what `make paper-figures` redraws"


def test_the_paper_finds_what_is_published() -> None:
    """Every interval and every decimal of its findings is in a page of the documentation."""
    sections = PAPER.read_text("utf-8").split("\n# ")
    (findings,) = (text for text in sections if text.startswith("What was found"))
    numbers = set(MEASURED.findall(" ".join(findings.split())))
    known = " ".join(" ".join(page.read_text("utf-8").split()) for page in SOURCES)
    assert len(numbers) > 12
    assert numbers - set(MEASURED.findall(known)) == set()


# ----------------------------------------------------------------------------------------------- site
@pytest.fixture(scope="module")
def site(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every warning an error and without a network."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    class NoNetwork(socket.socket):
        def connect(self, address: Any) -> None:
            raise AssertionError(f"the build of the site reaches for {address}")

    out = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.setattr(socket, "socket", NoNetwork)
        config = load_config(str(repository / "mkdocs.yml"), site_dir=str(out), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return out


@pytest.mark.trust
def test_the_site_fetches_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES) // 2
    for page in pages:
        text = page.read_text("utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(https?:[^\s\">]+)", text)
        fetched += re.findall(r"<link[^>]*stylesheet[^>]*href=\"?(https?:[^\s\">]+)", text)
        assert fetched == [], page


@pytest.mark.trust
def test_the_site_shows_docstrings_figures_and_notebooks(site: Path) -> None:
    assert "Fit every method at every layer" in (site / "api/localization/index.html").read_text("utf-8")
    assert (site / "figures/localization_curves.png").is_file()
    assert (site / "figures/smollm2/localizers.png").is_file()
    assert len(list((site / "notebooks").glob("*/index.html"))) == 6


@pytest.mark.trust
def test_every_page_names_the_version_that_it_documents(site: Path, repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    pages = sorted(site.rglob("index.html"))
    assert [page for page in pages if f"ot_lens {project['version']}" not in page.read_text("utf-8")] == []
