"""A diagnostic registered from outside is measured like ours."""

import numpy as np
import pytest
import torch

import ot_lens as otl
from ot_lens.errors import OtLensError, OtLensTypeError
from ot_lens.geometry import quantities
from tests.generators.gaussians import layered

DRAWS = {"permutations": 39, "bootstrap": 39}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(quantities, "DIAGNOSTICS", dict(quantities.DIAGNOSTICS))


def gap(H: torch.Tensor, S: torch.Tensor) -> torch.Tensor:
    return (H.mean(0) - S.mean(0)).square().sum()


def test_a_registered_diagnostic_has_the_null_and_the_interval_of_a_built_in_one():
    otl.register_diagnostic("gap", gap, unit="activation²", bounds=(0.0, np.inf))
    table = otl.diagnose(layered(12, 14, 6, layers=3, seed=0), **DRAWS)
    ours, users = (table[table["quantity"] == name] for name in ("w2_location", "gap"))
    assert users["layer"].tolist() == [0, 1, 2]
    assert set(users["unit"]) == {"activation²"}
    numbers = ["value", "n", "null_mean", "null_low", "null_high", "low", "high"]
    np.testing.assert_allclose(users[numbers], ours[numbers], rtol=1e-9)


def test_a_diagnostic_of_one_class_counts_the_prompts_of_that_class():
    otl.register_diagnostic("spread_harmless", lambda H, S: S.var(0).sum().item(), scale="log")
    table = otl.diagnose(layered(12, 14, 6, layers=1, seed=1), **DRAWS).set_index("quantity")
    row = table.loc["spread_harmless"]
    assert row["n"] == 14
    assert 0 < row["low"] < row["value"] < row["high"]


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        (("w2_squared", gap), {}, "w2_squared"),
        (("", gap), {}, "''"),
        (("area", gap, "AUC"), {}, "AUC"),
        (("gap", gap), {"scale": "cubic"}, "cubic"),
        (("gap", gap), {"bounds": (1.0, 0.0)}, "1.0"),
    ],
)
def test_a_diagnostic_that_cannot_be_registered_is_named(arguments, options, named):
    with pytest.raises(OtLensError, match=named):
        otl.register_diagnostic(*arguments, **options)


def test_a_diagnostic_must_return_one_number():
    otl.register_diagnostic("vector", lambda H, S: H.mean(0))
    with pytest.raises(OtLensTypeError, match="vector"):
        otl.diagnose(layered(5, 6, 3, layers=1, seed=3), **DRAWS)
