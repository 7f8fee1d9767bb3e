"""The project itself: import order and cost, public names, bounds, licences, the locks, the Makefile."""

import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import ot_lens

HEAVY = (
    *("accelerate", "bitsandbytes", "dash", "datasets", "flask", "huggingface_hub", "jaxtyping", "lm_eval"),
    *("matplotlib", "numpy", "ot", "pandas", "plotly", "psutil", "pyarrow", "ray", "safetensors", "scipy"),
    *("sklearn", "tokenizers", "torch", "transformer_lens", "transformers", "wandb"),
)
# Of each command and group that `ot-lens --help` names; the first is the program itself.
HELP = (
    "",
    *("demo", "run", "init", "figures", "explore", "verify"),
    *("organism", "organism train", "organism evaluate", "study", "study paper"),
)
# typer, rich and pydantic are about 350 of them; torch alone brings over a thousand.
MOST_MODULES = 600


def run(*command: str | Path, cwd: Path | None = None, check: bool = True, **extra: str) -> str:
    """What a command prints, both streams together, run as if from a shell rather than from make."""
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    environment |= extra
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `code`, by their full names."""
    tail = "\nimport sys\nprint('LOADED', *sys.modules)"
    return set(run(sys.executable, "-c", code + tail).rsplit("LOADED", 1)[1].split())


def heavy(modules: Iterable[str]) -> set[str]:
    """Which of the HEAVY packages are among them."""
    return set(HEAVY) & {name.partition(".")[0] for name in modules}


def helped(command: str) -> str:
    """Code that asks a command for its help."""
    return (
        "import sys; from ot_lens.cli import main\n"
        f"sys.argv = ['ot-lens', *{command.split()!r}, '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code"
    )


# ------------------------------------------------------------------------------------------- imports
def test_imports_run_only_downward(repository: Path) -> None:
    output = run(Path(sys.executable).with_name("lint-imports"), cwd=repository)
    assert re.search(r"[1-9]\d* kept, 0 broken", output)


def contract(repository: Path, key: str) -> dict[str, Any]:
    """An import-linter contract of pyproject.toml, by its id."""
    contracts = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    return next(contract for contract in contracts if contract["id"] == key)


def top_modules(repository: Path) -> set[str]:
    """Modules and packages right below ot_lens."""
    found = (repository / "ot_lens").iterdir()
    return {path.stem for path in found if path.suffix == ".py" or (path / "__init__.py").is_file()} - {
        "__init__"
    }


def test_every_module_has_its_layer(repository: Path) -> None:
    layers = contract(repository, "layers")["layers"]
    assert top_modules(repository) <= {name for layer in layers for name in re.findall(r"\w+", layer)}


def test_the_rest_is_kept_from_the_model_library(repository: Path) -> None:
    load_models = {
        "models",
        "generation",
        "organism",
        "activations",
        "interventions",
        "single_pass",
        "behaviour",
    }
    use_them = {
        "localization",
        "directions",
        "execution",
        "study",
        "paper_study",
        "report",
        "explorer",
        "cli",
    }
    sources = contract(repository, "model-library")["source_modules"]
    kept = {name for name in (source.removeprefix("ot_lens.") for source in sources) if "." not in name}
    assert top_modules(repository) - load_models - use_them == kept


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert heavy(loaded_after("import ot_lens")) == set()
    assert {"matplotlib", "numpy"} <= heavy(loaded_after("import matplotlib"))


@pytest.mark.parametrize("command", HELP)
def test_help_loads_nothing_heavy(command: str, record_property: Callable[[str, object], None]) -> None:
    began = time.perf_counter()
    modules = loaded_after(helped(command))
    record_property("seconds", round(time.perf_counter() - began, 2))  # says more of the machine: no gate
    record_property("modules", len(modules))
    assert heavy(modules) == set()
    assert 100 < len(modules) < MOST_MODULES


def test_every_command_is_asked_for_its_help() -> None:
    from typer.main import get_command

    from ot_lens.cli import app

    def names(group: Any, prefix: str) -> Iterable[str]:
        for name, command in getattr(group, "commands", {}).items():
            yield f"{prefix}{name}"
            yield from names(command, f"{prefix}{name} ")

    assert {"", *names(get_command(app), "")} == set(HELP)


def test_the_console_script_answers(repository: Path) -> None:
    output = run(Path(sys.executable).with_name("ot-lens"), "--help")
    assert "Usage" in output
    assert "demo" in output


# ------------------------------------------------------------------------------------------- public names
def public_callables() -> list[tuple[str, Any]]:
    """Each public function and class, and the public methods and properties that those classes define."""
    found: list[tuple[str, Any]] = []
    for name in ot_lens.__all__:
        value = getattr(ot_lens, name)
        if callable(value):
            found.append((name, value))
        if inspect.isclass(value):
            members = [
                (f"{name}.{k}", function_of(v)) for k, v in vars(value).items() if not k.startswith("_")
            ]
            found += [(key, member) for key, member in members if inspect.isfunction(member)]
    return found


def function_of(member: Any) -> Any:
    """The function behind a method, class method, property or cached property."""
    for attribute in ("__func__", "fget", "func"):
        member = getattr(member, attribute, member)
    return member


def test_public_names_are_unique_and_there() -> None:
    names = list(ot_lens.__all__)
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(ot_lens, name)] == []
    assert set(names) <= set(dir(ot_lens))


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name, value in public_callables() if not (inspect.getdoc(value) or "").strip()] == []


def test_every_public_function_is_annotated() -> None:
    bare = []
    for name, value in public_callables():
        if inspect.isclass(value):
            continue
        signature = inspect.signature(value)
        parameters = [p for p in signature.parameters.values() if p.name not in {"self", "cls"}]
        bare += [f"{name}({p.name})" for p in parameters if p.annotation is p.empty]
        bare += [f"{name} -> ?"] if signature.return_annotation is signature.empty else []
    assert bare == []


# ------------------------------------------------------------------------------------------- metadata
def test_one_version_everywhere(repository: Path) -> None:
    version = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    assert ot_lens.__version__ == version == importlib.metadata.version("ot_lens")
    assert yaml.safe_load((repository / "CITATION.cff").read_text())["version"] == version


def test_the_source_paper_is_cited_without_invented_authors(repository: Path) -> None:
    (paper,) = yaml.safe_load((repository / "CITATION.cff").read_text())["references"]
    assert paper["url"].endswith("2603.04355")
    assert [set(author) for author in paper["authors"]] == [{"name"}]  # an entity: no person is named


@pytest.mark.parametrize(
    ("lock", "transformer_lens"),
    [
        ("constraints.txt", "4.3.0"),
        ("constraints-tl3.txt", "3.9.0"),
        ("constraints-lowest.txt", "3.9.0"),
    ],
)
def test_a_lock_pins_every_dependency_within_its_range(
    repository: Path, lock: str, transformer_lens: str
) -> None:
    pins = pinned(repository, lock)
    wanted = declared(repository, *(["all"] if lock == "constraints.txt" else ["test"]))
    assert pins["torch"] == "2.13.0+cpu"
    assert pins["transformer-lens"] == transformer_lens
    assert [str(need) for need in wanted if not need.specifier.contains(pins[_canonical(need.name)])] == []


# What a user installs; torch stands above its bound, for its older builds bring several GB of CUDA.
USERS = ("page", "hub", "capability", "ray", "quantization", "notebooks")
NOT_AT_ITS_LOWER_BOUND = {"torch"}
# Weak copyleft: they bind changes to these packages themselves, not the code beside them.
EXPLAINED = {"certifi": "Mozilla Public License 2.0 (MPL 2.0)", "tqdm": "MPL-2.0 AND MIT"}
PERMISSIVE = re.compile(r"\b(MIT|BSD|0BSD|Apache|PSF|Python Software Foundation|ISC|CNRI|Zlib|CC0|BSL-1\.0)")


def declared(repository: Path, *extras: str) -> list[Requirement]:
    """The dependencies of pyproject.toml, with those of some extras, or with "all" of them."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    names = optional if extras == ("all",) else extras
    texts = [*project["dependencies"], *(text for name in names for text in optional[name])]
    return [need for need in map(Requirement, texts) if need.name != "ot_lens"]


def pinned(repository: Path, lock: str) -> dict[str, str]:
    """Versions of a lock by canonical name."""
    lines = [line for line in (repository / lock).read_text().splitlines() if not line.startswith("#")]
    names = (line.partition(" ;")[0].split("==") for line in reversed(lines))  # Linux last: its torch counts
    return {_canonical(name): version for name, version in names}


def test_every_dependency_has_a_lower_and_an_upper_bound(repository: Path) -> None:
    needs = declared(repository, "all")
    assert len(needs) > 40
    assert [str(need) for need in needs if {s.operator for s in need.specifier} != {">=", "<"}] == []


def test_the_lowest_lock_is_the_lower_bounds(repository: Path) -> None:
    pins = pinned(repository, "constraints-lowest.txt")
    above = {
        need.name
        for need in declared(repository, "test", *USERS)
        for bound in need.specifier
        if bound.operator == ">=" and Version(pins[_canonical(need.name)]) != Version(bound.version)
    }
    assert above == NOT_AT_ITS_LOWER_BOUND


def test_no_lock_names_what_only_a_graphics_card_needs(repository: Path) -> None:
    locks = sorted(repository.glob("constraints*.txt"))
    assert len(locks) == 4
    for lock in locks:
        assert not [name for name in pinned(repository, lock.name) if name.startswith(("nvidia", "triton"))]


def test_what_a_user_installs_may_be_distributed_beside_mit(repository: Path) -> None:
    unclear = {name: licence_of(name) for name in installed_closure(declared(repository))}
    assert len(unclear) > 40
    assert {name: said for name, said in unclear.items() if not permissive(said)} == EXPLAINED
    assert not permissive("GNU General Public License v3 (GPLv3)")


def permissive(said: str) -> bool:
    """Whether each part of a licence expression is a licence of the short, permissive kind."""
    parts = re.split(r"\s+AND\s+|;", said)
    return all(PERMISSIVE.search(part) is not None for part in parts)


def licence_of(name: str) -> str:
    """The licence that an installed package states: expression, classifiers, or the older free text."""
    stated = importlib.metadata.metadata(name)
    classified = [
        text.rpartition(" :: ")[2]
        for text in stated.get_all("Classifier") or []
        if text.startswith("License ::")
    ]
    texts = (stated.get("License-Expression"), "; ".join(classified), stated.get("License"))
    return next((text for text in texts if text), "").partition("\n")[0]


def installed_closure(needs: Iterable[Requirement]) -> set[str]:
    """Canonical names of what these requirements install here, directly or not."""
    found: set[str] = set()
    waiting = list(needs)
    while waiting:
        name = _canonical(waiting.pop().name)
        if name not in found:
            found.add(name)
            further = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [
                need for need in further if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return found


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def tracked_files(repository: Path) -> list[Path]:
    """Files under version control that are in the work tree."""
    names = run("git", "ls-files", "-z", cwd=repository).split("\0")
    return [repository / name for name in names if name and (repository / name).is_file()]


def test_no_committed_file_names_a_place_outside_the_repository(repository: Path) -> None:
    outside = re.compile(rb"(?<![\w.-])" + rb"/(?:wo" + rb"rk|root|home/\w+)/|\.\./sha" + rb"red")
    assert outside.search(b"see /wo" + b"rk/x") is not None
    files = tracked_files(repository)
    assert len(files) > 10
    assert [str(file) for file in files if outside.search(file.read_bytes())] == []


# ------------------------------------------------------------------------------------------- commands
def test_the_readme_names_only_commands_that_exist(repository: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (repository / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", "\n".join(_code(repository / "README.md"))))
    assert {"demo", "test"} <= named <= targets


def _code(readme: Path) -> list[str]:
    """Fenced blocks and inline code of a Markdown file."""
    text = readme.read_text()
    return re.findall(r"```.*?```", text, flags=re.S) + re.findall(r"`[^`\n]+`", text)


def test_ci_runs_what_a_change_must_pass(repository: Path) -> None:
    script = repository / ".ci" / "run"
    run("bash", "-n", script)
    assert os.access(script, os.X_OK)
    steps = re.findall(r"^step make .*?([a-z0-9-]+)$", script.read_text(), flags=re.M)
    assert set(steps) == {"lint", "docs", "test-all"}


STUB = """#!/bin/bash
# Acts as a Python that makes environments and runs pip, and as uv; each call becomes a line of $CALLS.
echo "$(basename "$0") $*" >> "$CALLS"
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi
if [ "$1 $2" = "-m pip" ]; then cp "$0" "$(dirname "$0")/uv"; fi
if [ "$1" = pip ] && [ -n "${BROKEN:-}" ]; then exit 1; fi
"""


class Checkout:
    """A copy of what the Makefile reads, on a machine whose only Python is a stub."""

    def __init__(self, repository: Path, folder: Path) -> None:
        self.folder, self.calls = folder / "checkout", folder / "calls"
        self.folder.mkdir()
        for path in (
            repository / "Makefile",
            repository / "pyproject.toml",
            *repository.glob("constraints*"),
        ):
            shutil.copy(path, self.folder / path.name)
        stub = folder / "bin" / "python3.11"
        stub.parent.mkdir()
        stub.write_text(STUB)
        stub.chmod(0o755)
        (stub.parent / "python3").symlink_to(
            shutil.which("false") or ""
        )  # hides the settings of this machine's pip
        rest = [f for f in os.environ["PATH"].split(os.pathsep) if not (Path(f) / "uv").exists()]
        self.environment = {"PATH": os.pathsep.join([str(stub.parent), *rest]), "CALLS": str(self.calls)}

    def plan(self, target: str) -> str:
        """What a target would do."""
        return run("make", "-n", target, cwd=self.folder, **self.environment)

    def set_up(self, target: str = "lint", **environment: str) -> list[str]:
        """Set up the environment of a target; returns what was made and installed."""
        self.calls.write_text("")
        for stamp in re.findall(r"touch (\.venv/\w+-\w+)", self.plan(target)):
            run("make", stamp, cwd=self.folder, check=not environment, **self.environment, **environment)
        calls = self.calls.read_text().splitlines()
        return [call.split()[-1] for call in calls if re.search(r"-m venv|^uv pip|-m pip", call)]

    @property
    def python(self) -> Path:
        return self.folder / ".venv" / "bin" / "python"


CORE = [".venv", "uv", ".[page]"]
TOOLS = ["uv", ".[test,dev]"]


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Checkout:
    return Checkout(repository, tmp_path)


def test_the_demo_sets_up_the_core_and_the_page_only(checkout: Checkout) -> None:
    assert checkout.set_up("demo") == CORE
    assert checkout.set_up("demo") == []
    assert checkout.set_up("lint") == TOOLS
    assert checkout.set_up("lint") == checkout.set_up("demo") == []


def test_make_leaves_alone_what_was_only_touched(checkout: Checkout) -> None:
    assert checkout.set_up() == CORE + TOOLS
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(checkout.folder / name)
    assert checkout.set_up() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_make_updates_after_a_change(checkout: Checkout, name: str) -> None:
    checkout.set_up()
    with (checkout.folder / name).open("a") as file:
        file.write("# more\n")
    assert checkout.set_up() == CORE[1:] + TOOLS
    assert checkout.set_up() == []


def test_make_starts_over_after_an_interrupted_set_up(checkout: Checkout) -> None:
    assert checkout.set_up("demo", BROKEN="yes") == CORE
    assert checkout.set_up("demo") == CORE


@pytest.mark.parametrize("fault", ["no interpreter", "moved"])
def test_make_starts_over_where_the_environment_does_not_run(
    checkout: Checkout, tmp_path: Path, fault: str
) -> None:
    checkout.set_up()
    if fault == "moved":
        checkout.folder = checkout.folder.rename(tmp_path / "elsewhere")
    else:
        checkout.python.unlink()
        checkout.python.symlink_to("/nowhere/python3")
    assert checkout.set_up() == CORE + TOOLS


def test_every_lock_names_the_cpu_build_of_torch(checkout: Checkout) -> None:
    """Elsewhere than on a machine with wheels of its own, it comes from the index that has it."""
    for lock in checkout.folder.glob("constraints*.txt"):
        assert re.search(r'^torch==[\d.]+\+cpu ; sys_platform == "linux"$', lock.read_text(), flags=re.M), (
            lock
        )
    checkout.set_up("demo")
    installed = [line for line in checkout.calls.read_text().splitlines() if line.startswith("uv pip")]
    assert len(installed) == 1
    assert "https://download.pytorch.org/whl/cpu" in installed[0]
    assert "--constraint constraints.txt" in installed[0]
