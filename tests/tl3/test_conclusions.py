"""A HookedTransformer of the embedded models gives the numbers of float64 on transformer-lens 4."""

import json

import pytest

from tests.tl3.build import hooked_transformer
from tests.trust.model_numbers import deviations, few, numbers_of, weights
from tests.trust.reference_numbers import FILE, PROMPTS, VARIANTS
from tests.trust.test_numerics import TOLERANCES


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_numbers_and_conclusions_are_those_of_the_other_library(variant, size, record_property):
    expected = json.loads(FILE.read_text())[variant]
    found = numbers_of(hooked_transformer(weights(variant)), few(n=PROMPTS), batch_size=size)
    apart = deviations(found.summary(), expected["numbers"])
    for name, value in apart.items():
        record_property(f"numerics_{variant}_hooked_transformer_{size}_{name}", f"{value:.2e}")
    assert {name: value for name, value in apart.items() if value > TOLERANCES[name]} == {}
    assert found.conclusions == expected["conclusions"]
