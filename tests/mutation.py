"""Mutation testing of the mathematics: every small change to the code must make some test fail.

`python tests/mutation.py` mutates the modules of each area in a copy of the working tree and runs the area's
tests against every mutant. It prints counts by module and the names of surviving mutants.
Strings are not mutated: tests assert the kind of an error and the value it names, not its text. mutmut has
its own environment on top of the one that runs this script, so the project does not depend on it. Results are
kept: a second run tests only what is left, and `--fresh` starts over.

Runtime shape checks are off (their pytest plugin cannot run twice in a process, which mutmut requires), so no
mutant is killed by a shape annotation alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MUTMUT = "mutmut==3.8.1"
HEART = ("tests/test_linalg*.py", "tests/test_gaussian*.py", "tests/test_moments*.py", "tests/transport")


@dataclass(frozen=True)
class Area:
    """Modules that are mutated together and the tests that must notice, as path patterns."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


AREAS = {
    "linalg": Area(("ot_lens/linalg/*.py",), HEART),
    "gaussian": Area(("ot_lens/gaussian.py",), HEART),
    "moments": Area(("ot_lens/moments.py",), HEART),
    "transport": Area(("ot_lens/transport/*.py",), HEART),
    "interventions": Area(
        ("ot_lens/interventions.py", "ot_lens/models/reversible.py"), ("tests/test_interventions*.py",)
    ),
}

# Fast tests first, since the first failing test decides. Failing examples are not shrunk.
CONFTEST = """

def pytest_collection_modifyitems(items):
    import json

    stored = Path("mutmut-stats.json")
    seconds = json.loads(stored.read_text())["duration_by_test"] if stored.exists() else {}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


from hypothesis import Phase

settings.register_profile(
    "mutation", settings.get_profile("ot_lens"), phases=[Phase.explicit, Phase.generate], database=None
)
settings.load_profile("mutation")
"""
# Leaves out the test of where a warning points: mutmut inserts calls between a function and its caller.
CONFIGURATION = """
[tool.mutmut]
source_paths = ["ot_lens"]
only_mutate = {modules}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-k", "not points_at_the_line"]
pytest_add_cli_args_test_selection = {tests}
timeout_multiplier = 4.0
timeout_constant = 2.0
use_git_change_detection = false
"""
# mutmut's command with every operator but that of strings.
RUN = """
from mutmut.mutation import mutators
mutators.mutation_operators[:] = [
    pair for pair in mutators.mutation_operators if pair[1] is not mutators.operator_string
]
from mutmut.__main__ import cli
cli()
"""
STATUS = {0: "survived", 1: "killed", 3: "killed", 5: "no tests", 33: "no tests", None: "not run"}
STATUS |= dict.fromkeys((24, -24, 36, 152, 255), "timeout")
UNNOTICED = ("survived", "no tests")


def environment(folder: Path) -> Path:
    """An environment with mutmut that sees every package of the one that runs this script."""
    made = folder / "venv"
    ready = made / "ready"
    if not ready.exists():
        shutil.rmtree(made, ignore_errors=True)
        venv.create(made, with_pip=True)
        packages = next((made / "lib").glob("python*")) / "site-packages"
        # Only a folder to search: its .pth files, such as that of the installed ot_lens, are not read.
        (packages / "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        subprocess.run([made / "bin" / "python", "-m", "pip", "install", "-q", MUTMUT], check=True)
        ready.touch()
    return made / "bin"


def copy_of_working_tree(folder: Path, area: Area) -> None:
    """Copy the package and its tests, committed or new, with mutmut's configuration."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in names.split("\0"):
        if name.startswith(("ot_lens/", "tests/")) and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    project = (REPOSITORY / "pyproject.toml").read_text()
    # Without this pytest ends each run with garbage collections, which take half of the time.
    project = project.replace("addopts = [", 'addopts = [\n    "-p", "no:unraisableexception",')
    tests = [str(path.relative_to(folder)) for pattern in area.tests for path in sorted(folder.glob(pattern))]
    options = CONFIGURATION.format(modules=json.dumps(area.modules), tests=json.dumps(tests))
    (folder / "pyproject.toml").write_text(project + options)
    conftest = folder / "tests" / "conftest.py"
    conftest.write_text(conftest.read_text().replace("shapes.install()\n", "") + CONFTEST)


def mutmut(tools: Path, folder: Path, jobs: int) -> None:
    """Run mutmut in a copy, with one thread per process; its progress goes to a log."""
    command = [tools / "python", "-c", RUN, "run", "--max-children", str(jobs)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{tools}:{os.environ['PATH']}"}
    with (folder / "log").open("a") as log:
        subprocess.run(command, cwd=folder, env=variables, stdout=log, stderr=log, check=True)


def verdicts(folder: Path) -> dict[str, dict[str, str]]:
    """The result of each mutant, by module."""
    found = {}
    for meta in sorted((folder / "mutants").rglob("*.py.meta")):
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        if codes:
            module = str(meta.relative_to(folder / "mutants")).removesuffix(".meta")
            found[module] = {name: STATUS.get(code, "other") for name, code in codes.items()}
    return found


def share_killed(statuses: Iterable[str]) -> float:
    """Of the mutants that were run; a timeout counts."""
    run = [status in ("killed", "timeout") for status in statuses if status != "not run"]
    return sum(run) / max(len(run), 1)


def main() -> int:
    """Mutate areas; prints counts by module and names survivors, whose change `mutmut show NAME` prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("areas", nargs="*", default=list(AREAS), help=f"of {', '.join(AREAS)}")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "mutation")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested in parallel")
    parser.add_argument("--fresh", action="store_true", help="discard earlier results")
    parser.add_argument("--least", type=float, default=0.85, help="share of mutants that must be killed")
    arguments = parser.parse_args()
    folder, every = arguments.folder.resolve(), []
    folder.mkdir(parents=True, exist_ok=True)
    tools = environment(folder)
    for area in arguments.areas:
        copy = folder / area
        if arguments.fresh or not (copy / "mutants").exists():
            copy_of_working_tree(copy, AREAS[area])
        mutmut(tools, copy, arguments.jobs)
        for module, results in verdicts(copy).items():
            print(f"{module:40} {share_killed(results.values()):6.1%} {dict(Counter(results.values()))}")
            print(
                *(f"    {status}: {name}" for name, status in results.items() if status in UNNOTICED),
                sep="\n",
            )
            every += results.values()
    print(f"{'all':40} {share_killed(every):6.1%} {dict(Counter(every))}")
    return int(share_killed(every) < arguments.least)


if __name__ == "__main__":
    sys.exit(main())
