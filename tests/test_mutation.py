"""The runner of the mutation tests: it finds what it is to mutate, counts right and copies what is here."""

from pathlib import Path

import pytest

from tests.mutation import AREAS, copy_of_working_tree, share_killed, verdicts


@pytest.mark.parametrize("area", AREAS.values(), ids=list(AREAS))
def test_every_area_has_modules_and_tests(area, repository: Path):
    for pattern in (*area.modules, *area.tests):
        assert list(repository.glob(pattern)), pattern


def test_a_copy_has_the_configuration_of_its_area(tmp_path: Path):
    import tomllib

    copy_of_working_tree(tmp_path / "copy", AREAS["moments"])
    project = tomllib.loads((tmp_path / "copy" / "pyproject.toml").read_text())
    assert project["tool"]["mutmut"]["only_mutate"] == ["ot_lens/moments.py"]
    tests = project["tool"]["mutmut"]["pytest_add_cli_args_test_selection"]
    assert "tests/test_moments.py" in tests
    assert all((tmp_path / "copy" / test).exists() for test in tests)
    options = project["tool"]["pytest"]["ini_options"]["addopts"]
    assert "shapes.install()" not in (tmp_path / "copy" / "tests" / "conftest.py").read_text()
    assert "no:unraisableexception" in options


def test_mutants_are_counted_by_what_became_of_them(tmp_path: Path):
    meta = tmp_path / "mutants" / "ot_lens" / "moments.py.meta"
    meta.parent.mkdir(parents=True)
    meta.write_text('{"exit_code_by_key": {"a": 1, "b": 0, "c": 33, "d": -24, "e": null, "f": 7, "g": 3}}')
    (meta.parent / "empty.py.meta").write_text('{"exit_code_by_key": {}}')
    found = verdicts(tmp_path)
    assert list(found) == ["ot_lens/moments.py"]
    statuses = list(found["ot_lens/moments.py"].values())
    assert statuses == ["killed", "survived", "no tests", "timeout", "not run", "other", "killed"]
    assert share_killed(statuses) == 0.5
