"""What a stranger installs: whole, equal whenever it is built, and working without the repository."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ot_lens.models.files import VARIANTS
from ot_lens.models.named import shipped_adapters

SMALL = {
    "sample": [8, 8, 8], "layers": [5], "methods": ["directional_ablation"], "sets": ["single"],
    "controls": [], "sufficiency": False, "max_new_tokens": 4, "permutations": 39, "bootstrap": 39,
}  # fmt: skip


MOST_BYTES = 25_000_000  # of the wheel


@dataclass(frozen=True)
class Built:
    """A source archive and the wheel that was built from it."""

    sdist: Path
    wheel: Path


def run(*command: str | Path, cwd: Path, **extra: str) -> str:
    """What a command prints, in an environment that knows neither the repository nor make."""
    dropped = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHONPATH", "VIRTUAL_ENV", "SOURCE_DATE_EPOCH")
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | extra
    done = subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(source: Path, isolation: bool, *wheel_alone: str, **environment: str) -> Path:
    """Build with `python -m build`; returns the folder of what was built."""
    how = () if isolation else ("--no-isolation",)
    run(sys.executable, "-m", "build", *wheel_alone, *how, "--outdir", "dist", ".", cwd=source, **environment)
    return source / "dist"


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


@pytest.fixture(scope="module")
def source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files under version control, elsewhere: a build leaves nothing behind in the work tree."""
    folder = tmp_path_factory.mktemp("source") / "ot_lens"
    for name in run("git", "ls-files", "-z", cwd=repository).split("\0"):
        if name and (repository / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def release(source: Path, full_size: bool, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """At full size built as anyone would, in an isolated environment; else with the hatchling at hand."""
    copy = shutil.copytree(source, tmp_path_factory.mktemp("release") / "ot_lens")
    folder = built(copy, full_size)
    return Built(only(folder, "*.tar.gz"), only(folder, "*.whl"))


def files(folder: Path, *tops: str) -> set[str]:
    """Files in some of a folder's folders, by their paths in it."""
    return {
        str(file.relative_to(folder)) for top in tops for file in (folder / top).rglob("*") if file.is_file()
    }


# ------------------------------------------------------------------------------------------- what is built
def test_the_wheel_holds_every_file_of_the_package(
    source: Path, release: Built, record_property: Any
) -> None:
    inside = set(zipfile.ZipFile(release.wheel).namelist())
    (metadata,) = {Path(name).parts[0] for name in inside} - {"ot_lens"}
    assert {name for name in inside if not name.startswith(metadata)} == files(source, "ot_lens")
    assert "ot_lens/py.typed" in inside
    assert f"{metadata}/licenses/LICENSE" in inside
    weights = [name for name in inside if name.endswith(".safetensors")]
    assert {Path(name).parent.name for name in weights} == {*VARIANTS, *shipped_adapters()}
    assert release.wheel.stat().st_size <= MOST_BYTES
    record_property("wheel_bytes", release.wheel.stat().st_size)
    record_property("sdist_bytes", release.sdist.stat().st_size)


def test_the_source_archive_holds_what_its_own_tests_and_documentation_need(
    source: Path, release: Built
) -> None:
    with tarfile.open(release.sdist) as archive:
        inside = {str(Path(*Path(name).parts[1:])) for name in archive.getnames()}
    assert files(source, "ot_lens", "tests", "docs", "notebooks") <= inside
    assert {"pyproject.toml", "constraints.txt", "constraints-lowest.txt", "LICENSE", "Makefile"} <= inside
    assert not [name for name in inside if name.startswith(("runs", ".venv", "site/"))]


@pytest.mark.campaign
def test_a_wheel_from_the_tree_of_another_day_is_byte_equal_to_the_one_from_the_source_archive(
    source: Path, release: Built, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(source, tmp_path / "elsewhere")
    for file in elsewhere.rglob("*"):
        os.utime(file, (1_000_000_000, 1_000_000_000))
        file.chmod(file.stat().st_mode & 0o700)
    again = only(built(elsewhere, False, "--wheel"), "*.whl")
    assert again.name == release.wheel.name
    assert again.read_bytes() == release.wheel.read_bytes()
    # The control: the day that a builder states is in the bytes.
    stated = built(elsewhere, False, "--wheel", SOURCE_DATE_EPOCH="1700000000")
    assert only(stated, "*.whl").read_bytes() != release.wheel.read_bytes()


# ------------------------------------------------------------------------------------------- what it does
@pytest.mark.campaign
def test_the_installed_wheel_runs_in_an_empty_folder(release: Built, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    pip = ("-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", site)
    run(sys.executable, *pip, release.wheel, cwd=folder)
    script, seen = site / "bin" / "ot-lens", {"PYTHONPATH": str(site)}
    where = run(sys.executable, "-c", "import ot_lens; print(ot_lens.__file__)", cwd=folder, **seen)
    assert Path(where.strip()).is_relative_to(site)
    assert "refuses" in run(script, "organism", "evaluate", "--n", "2", cwd=folder, **seen)
    (folder / "study.yaml").write_text(yaml.safe_dump(SMALL))
    run(script, "run", "study.yaml", "--out", "mine", cwd=folder, **seen)
    assert (folder / "mine" / "tables" / "localization.parquet").stat().st_size > 0
    assert "<svg" in (folder / "mine" / "report.html").read_text()


@pytest.mark.campaign
def test_the_demo_runs_in_an_empty_environment(
    repository: Path, release: Built, tmp_path: Path, record_property: Any
) -> None:
    python, folder = tmp_path / "venv" / "bin" / "python", tmp_path / "empty"
    folder.mkdir()
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=folder)
    # The two commands of a newcomer, with the versions of the lock: `pip install ot-lens`, `ot-lens demo`.
    locked = {"PIP_CONSTRAINT": str(repository / "constraints.txt")}
    run(python, "-m", "pip", "install", "-qq", release.wheel, cwd=folder, **locked)
    names = {name.partition("==")[0] for name in run(python, "-m", "pip", "freeze", cwd=folder).split("\n")}
    assert not {"pytest", "hypothesis", "ruff"} & names
    began = time.perf_counter()
    run(python.with_name("ot-lens"), "demo", cwd=folder, OMP_NUM_THREADS="2")
    record_property("demo_seconds", round(time.perf_counter() - began))
    record_property("packages_installed", len(names) - 1)
    assert sorted(path.name for path in folder.iterdir()) == ["runs"]
    assert "The core works" in run(python.with_name("ot-lens"), "doctor", cwd=folder, HF_HUB_OFFLINE="1")
    run_folder = folder / "runs" / "demo"
    assert "<svg" in (run_folder / "report.html").read_text()
    assert {"localization", "geometry"} <= {path.stem for path in (run_folder / "tables").glob("*.parquet")}
    version = run(python, "-c", "import ot_lens; print(ot_lens.__version__)", cwd=folder).strip()
    assert version == importlib.metadata.version("ot_lens")
