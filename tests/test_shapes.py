"""The check of shapes that all tests run under: it covers every type of array, and it can fail."""

import re

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from ot_lens.linalg import mean_gap
from ot_lens.plots.description import Curve
from tests import shapes


def test_wrong_shapes_of_arguments_and_of_fields_are_noticed():
    with pytest.raises(TypeCheckError, match="mean_gap"):
        mean_gap(torch.ones(2, 3, 4), torch.ones(2, 3, 5))
    with pytest.raises(TypeCheckError, match="Curve"):
        Curve(np.ones(3), np.ones(4), np.ones(3), np.ones(3))


def test_every_type_of_array_and_its_aliases_are_known():
    sources = [file.read_text("utf-8") for file in shapes.PACKAGE.rglob("*.py")]
    lines = [line for text in sources for line in re.findall(r"from jaxtyping import (.+)", text)]
    assert {name.strip() for line in lines for name in line.split(",")} == shapes.ARRAYS
    assert {"Values", "Matrix", "Branch"} <= shapes.SHAPES


def test_a_call_is_checked_unless_its_types_and_shapes_have_been_seen():
    for _ in range(2):
        assert mean_gap(torch.ones(2, 3, 4).double(), torch.ones(2, 5, 4).double())[0].shape == (2, 4)
        with pytest.raises(TypeCheckError, match="mean_gap"):
            mean_gap(torch.ones(2, 3, 4).double(), torch.ones(2, 3, 5).double())
    a, b = torch.ones(2), np.ones((2, 3))
    assert shapes.look([a, b]) == shapes.look([torch.zeros(2), np.zeros((2, 3))])
    others = ([b, a], (a, b), [a], [a.double(), b], [a, b[:1]], {"a": a, "b": b}, {"a": b}, 1, 1.0, [1])
    assert len({shapes.look(value) for value in others} - {shapes.look([a, b])}) == len(others)
