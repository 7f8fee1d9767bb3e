"""Mutation testing of the mathematics: every small change to the code must make some test fail.

`python tests/mutation.py` mutates the modules of each area in a copy of the working tree and runs the area's
tests against every mutant; it prints a table by module and writes the surviving mutants' changes to a file.
mutmut is installed into an environment of its own, on top of the one that runs this script: it is no
dependency of the project. Results are kept: a second run only tests what is left, and `--fresh` begins anew.

The check of array shapes at run time is off here (its pytest plugin cannot run twice in a process, as mutmut
asks of it), so that no mutant dies of a shape annotation alone.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

REPOSITORY = Path(__file__).resolve().parent.parent
MUTMUT = "mutmut==3.8.1"
HEART = ("tests/test_linalg*.py", "tests/test_gaussian*.py", "tests/test_moments*.py", "tests/transport")


@dataclass(frozen=True)
class Area:
    """Modules that are mutated together and the tests that are to notice, as patterns of paths."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


AREAS = {
    "linalg": Area(("ot_lens/linalg/*.py",), HEART),
    "gaussian": Area(("ot_lens/gaussian.py",), HEART),
    "moments": Area(("ot_lens/moments.py",), HEART),
    "transport": Area(("ot_lens/transport/*.py",), HEART),
    "interventions": Area(
        ("ot_lens/interventions.py", "ot_lens/models/in_force.py"), ("tests/test_interventions*.py",)
    ),
}

# Fast tests first: a mutant is judged by the first test that fails. Failing examples need not be small.
CONFTEST = """

def pytest_collection_modifyitems(items):
    import json

    stored = Path("mutmut-stats.json")
    seconds = json.loads(stored.read_text())["duration_by_test"] if stored.exists() else {}
    items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


def pytest_unconfigure():
    import gc

    gc.freeze()  # what is there before the first mutant need not be looked at, and copied, by each of them


from hypothesis import Phase

settings.register_profile(
    "mutation", settings.get_profile("ot_lens"), phases=[Phase.explicit, Phase.generate], database=None
)
settings.load_profile("mutation")
"""
# The one test of where a warning points is left out: mutmut's calls stand between a function and its caller.
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
SHOW = """
import sys
from mutmut.mutation.diff_apply import find_mutant, get_diff_for_mutant
for name in sys.stdin.read().split():
    print(f"# {name}", get_diff_for_mutant(name, path=find_mutant(name).path), sep="\\n")
"""
STATUS = {1: "killed", 3: "killed", 0: "survived", 5: "no tests", 33: "no tests", None: "not run"}
STATUS |= dict.fromkeys((24, -24, 36, 152, 255), "timeout")
COLUMNS = ("killed", "timeout", "survived", "no tests", "other", "not run")


def environment(folder: Path) -> Path:
    """An environment with mutmut that sees every package of the one that runs this script."""
    place = folder / "venv"
    ready = place / "ready"
    if not ready.exists():
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        packages = next((place / "lib").glob("python*")) / "site-packages"
        # Only a folder to search: its .pth files, that of the installed ot_lens above all, are not read.
        (packages / "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        subprocess.run([place / "bin" / "python", "-m", "pip", "install", "-q", MUTMUT], check=True)
        ready.touch()
    return place / "bin"


def copy_of_working_tree(folder: Path, area: Area) -> None:
    """Committed and new files of the package and its tests, with mutmut's configuration."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split(
        "\0"
    )
    for name in names:
        if name.startswith(("ot_lens/", "tests/")) and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, folder / name)
    project = (REPOSITORY / "pyproject.toml").read_text()
    # Pytest ends each run with garbage collections, half of a mutant's time.
    project = re.sub('"--jaxtyping-packages=[^"]*"', '"-p", "no:unraisableexception"', project)
    tests = [
        str(found.relative_to(folder)) for pattern in area.tests for found in sorted(folder.glob(pattern))
    ]
    options = CONFIGURATION.format(modules=json.dumps(area.modules), tests=json.dumps(tests))
    (folder / "pyproject.toml").write_text(project + options)
    with (folder / "tests" / "conftest.py").open("a") as conftest:
        conftest.write(CONFTEST)


def mutmut(tools: Path, folder: Path, *arguments: str, check: bool = True) -> None:
    """Run mutmut in a copy, one thread a process; its progress goes to a log."""
    command = [tools / "mutmut", "run", *arguments]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{tools}:{os.environ['PATH']}"}
    with (folder / "log").open("a") as log:
        subprocess.run(command, cwd=folder, env=variables, stdout=log, stderr=log, check=check)


def verdicts(folder: Path) -> dict[str, dict[str, str]]:
    """What became of each mutant, by module."""
    found = {}
    for meta in sorted((folder / "mutants").rglob("*.py.meta")):
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        if codes:
            module = str(meta.relative_to(folder / "mutants")).removesuffix(".meta")
            found[module] = {name: STATUS.get(code, "other") for name, code in codes.items()}
    return found


def chosen(folder: Path, share: int | None, seed: int) -> list[str]:
    """Nothing, which is every mutant; or a random sample of so many."""
    if share is None:
        return []
    names = sorted(name for module in verdicts(folder).values() for name in module)
    return random.Random(seed).sample(names, min(share, len(names)))


def write_survivors(tools: Path, folder: Path, report: Path) -> None:
    """The change of every mutant that no test noticed."""
    names = [
        name
        for module in verdicts(folder).values()
        for name, status in module.items()
        if status in ("survived", "no tests")
    ]
    shown = subprocess.run(
        [tools / "python", "-c", SHOW],
        cwd=folder,
        input="\n".join(names),
        capture_output=True,
        text=True,
        check=True,
    )
    report.write_text(shown.stdout)


def row(name: str, counts: Counter[str]) -> str:
    """One line of the table; of a sample the rate has its 95 % Wilson interval."""
    tested = sum(counts.values()) - counts["not run"]
    killed = counts["killed"] + counts["timeout"]
    rate = f"{killed / tested:7.1%}" if tested else "      -"
    if tested and counts["not run"]:
        low, high = binomtest(killed, tested).proportion_ci(method="wilson")
        rate += f"  [{low:.1%}, {high:.1%}]"
    return f"{name:40}" + "".join(f"{counts[column]:>10}" for column in COLUMNS) + f"  {rate}"


def run_area(name: str, folder: Path, arguments: argparse.Namespace) -> Counter[str]:
    """Mutate one area, print its table; its counts."""
    tools, place = environment(folder), folder / name
    if arguments.fresh or not (place / "mutants").exists():
        copy_of_working_tree(place, AREAS[name])
    if arguments.sample is not None and not verdicts(place):
        mutmut(tools, place, "none", check=False)  # mutants are made when it runs; no mutant is called so
    names = chosen(place, arguments.sample, arguments.seed)
    mutmut(tools, place, "--max-children", str(arguments.jobs), *names)
    total: Counter[str] = Counter()
    for module, found in verdicts(place).items():
        counts = Counter(found.values())
        print(row(module, counts), flush=True)
        total += counts
    write_survivors(tools, place, folder / f"survivors_{name}.txt")
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "areas", nargs="*", default=list(AREAS), help=f"of {', '.join(AREAS)}; all unless given"
    )
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "mutation")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tested side by side")
    parser.add_argument("--sample", type=int, help="test a random sample of so many mutants an area")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--least", type=float, default=0.85, help="share of mutants that must be killed")
    arguments = parser.parse_args()
    if unknown := set(arguments.areas) - set(AREAS):
        parser.error(f"no area {', '.join(sorted(unknown))}: choose of {', '.join(AREAS)}")
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{'module':40}" + "".join(f"{column:>10}" for column in COLUMNS) + "     rate", flush=True)
    total = sum((run_area(name, folder, arguments) for name in arguments.areas), Counter())
    print(row("all", total))
    killed, tested = total["killed"] + total["timeout"], sum(total.values()) - total["not run"]
    return int(killed < arguments.least * tested)


if __name__ == "__main__":
    sys.exit(main())
