"""The table of docs/models.md: every family of decoders is served as it says."""

from pathlib import Path

import pytest

from tests import decoders

pytestmark = pytest.mark.usefixtures("mixed_lengths")


@pytest.fixture(scope="session")
def rows(repository: Path) -> dict[str, list[str]]:
    return decoders.documented(repository / "docs" / "models.md")


@pytest.mark.parametrize("family", [*decoders.FAMILIES, *decoders.VISION])
def test_a_family_is_served_as_documented(family, rows, tmp_path):
    assert decoders.cells(family, tmp_path) == rows[family][:-1]


QUICK = ("llama", "gemma3_text", "qwen3_moe", "falcon_h1")


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in QUICK else pytest.mark.trust) for f in decoders.FAMILIES]
)
def test_every_hook_point_is_served_as_documented(family, rows, tmp_path):
    row = decoders.cells(family, tmp_path)
    assert decoders.cell_of_every_hook_point(family, tmp_path, row) == rows[family][-1]


def test_the_page_is_complete(rows, repository):
    assert list(rows) == [*decoders.FAMILIES, *decoders.VISION]
    assert (repository / "docs" / "models.md").read_text("utf-8").startswith(decoders.ABOUT)
    assert sum("not served" not in row for row in rows.values()) >= 80
