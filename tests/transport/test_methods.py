"""One record per method: built-in ones are found in their files, a user's own are registered."""

import pytest
import torch

import ot_lens as otl
from ot_lens.errors import FitError
from ot_lens.plots.style import DASHES, MARKERS
from ot_lens.transport import FAMILIES, METHODS, as_record, fit_all, method_named, restore
from tests.generators.gaussians import layered, normal


@pytest.fixture
def methods(registries):
    """The registry, restored afterwards."""
    return METHODS


def half_shift(H, S, share=0.5):
    """Moves the source by a share of the difference in means."""
    none = H.new_zeros(H.shape[1], 0)
    return otl.AffineMap(none, none, share * (S.mean(0) - H.mean(0)))


def test_every_built_in_method_is_complete():
    assert list(METHODS)[:4] == ["directional_ablation", "rfa", "ace", "subspace_ablation"]
    for name, known in METHODS.items():
        assert known.name == name
        assert (known.fit is None) == (known.batch is None) == (known.learn is not None)
        assert known.formula
        assert known.family in FAMILIES
        assert known.marker in MARKERS
        assert known.dash in DASHES
    looks = [(known.colour, known.marker, known.dash) for known in METHODS.values()]
    assert len(set(looks)) == len(looks)


def test_a_registered_method_is_fitted_at_every_layer(methods):
    otl.register_method("half_shift", half_shift, label="Half shift", family="transport")
    acts = layered(6, 7, 10, layers=3, seed=1)
    maps = fit_all(acts, "half_shift", share=0.25)
    for layer, fitted in maps.items():
        H, S = acts.harmful(layer), acts.harmless(layer)
        torch.testing.assert_close(fitted.map(H), H + 0.25 * (S.mean(0) - H.mean(0)))
        assert (fitted.info.method, fitted.info.layer) == ("half_shift", layer)
    torch.testing.assert_close(otl.fit("half_shift", H, S).map(H), half_shift(H, S).map(H))


@pytest.mark.parametrize("name", ["pca_ot", "", "two words", "../x"])
def test_names_that_are_taken_or_are_no_identifiers_are_refused(methods, name):
    with pytest.raises(FitError, match="identifier"):
        otl.register_method(name, half_shift)


def test_a_fit_that_returns_no_map_is_named(methods):
    otl.register_method("matrix", lambda H, S: torch.eye(H.shape[1]))
    with pytest.raises(FitError, match=r"'matrix'.*Tensor"):
        fit_all(layered(5, 5, 4, layers=1, seed=2), "matrix")


def test_a_method_known_from_a_run_keeps_its_look_and_cannot_be_fitted(methods):
    record = as_record(otl.register_method("mine", half_shift, label="My map", colour="#112233"))
    methods.pop("mine")
    restore([record])
    assert as_record(method_named("mine")) == record
    with pytest.raises(FitError, match="import the module"):
        otl.fit("mine", normal(5, 4, seed=3), normal(5, 4, seed=4))
    restore([{**record, "label": "Another"}])
    assert method_named("mine").label == "My map"


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("pca_ot", "pca_ot"),
        ("pca_ot_null_space", "pca_ot"),
        ("mean_shift_gated_threshold", "mean_shift"),
        ("mean_shift_null_space_gated_norm_preserving", "mean_shift"),
    ],
)
def test_a_modified_method_knows_its_base(name, base):
    assert method_named(name).base == base


def test_the_base_survives_the_records_of_a_run(methods):
    otl.register_method("mine_gated", half_shift)  # a name of the user's own, not a modified method
    modified = as_record(method_named("mine_gated_null_space"))
    methods.pop("mine_gated")
    restore([modified])
    assert method_named("mine_gated_null_space").base == "mine_gated"
    assert method_named("mine_gated_null_space").modifiers == ("null_space",)
