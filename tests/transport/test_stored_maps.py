"""Maps on disk: what is stored comes back, and what is no map is refused by name."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from ot_lens.errors import RunFolderError
from ot_lens.transport import (
    AffineMap,
    FitInfo,
    SupportMask,
    fit_linear_act,
    fit_mean_shift,
    restrict_to_support,
)
from ot_lens.transport.storage import write_tensors
from tests.generators.gaussians import classes, normal

WHOLE = {"U": (3, 1), "V": (3, 1), "bias": (3,), "scale": (3,)}
MASK = WHOLE | {"low": (3,), "high": (3,)}


def ones(shapes: dict, dtypes: dict) -> dict[str, torch.Tensor]:
    default = dtypes.get("default", torch.float64)
    return {name: torch.ones(shape, dtype=dtypes.get(name, default)) for name, shape in shapes.items()}


def refused(path, kind=AffineMap) -> str:
    """The error, which names the file."""
    with pytest.raises(RunFolderError) as caught:
        kind.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("scale", [None, normal(4, seed=5)])
def test_a_stored_map_comes_back_bit_equal(scale, tmp_path):
    info = FitInfo("ace", layer=4, position=-1, hook="resid_pre", seed=7, k=2, notes=("a",))
    strided = normal(2, 4, seed=0).T.requires_grad_()
    T = AffineMap(strided, normal(4, 2, seed=1), normal(4, seed=2), scale, info)
    for name in "abc":
        T.save(str(tmp_path / "maps" / name))
    back = AffineMap.load(str(tmp_path / "maps" / "a"))
    assert back.info == info
    assert back.tensors().keys() == T.tensors().keys()
    for name, part in T.tensors().items():
        assert torch.equal(back.tensors()[name], part)
    assert len({(tmp_path / "maps" / name).read_bytes() for name in "abc"}) == 1
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("fitted", [fit_mean_shift, fit_linear_act])
def test_a_stored_mask_comes_back_and_is_no_affine_map(fitted, tmp_path):
    H, S = classes(9, 9, 4, seed=1)
    masked = restrict_to_support(fitted(H, S).labelled(layer=3), H)
    masked.save(tmp_path / "m")
    back = SupportMask.load(tmp_path / "m")
    assert back.info == masked.info
    assert (back.affine.scale is None) == (masked.affine.scale is None)
    assert torch.equal(back.low, masked.low)
    assert torch.equal(back.map(H), masked.map(H))
    assert "'SupportMask'" in refused(tmp_path / "m")


@pytest.mark.parametrize(
    ("kind", "shapes", "missing"),
    [(AffineMap, WHOLE, name) for name in ("U", "V", "bias")]
    + [(SupportMask, MASK, name) for name in ("U", "V", "bias", "low", "high")],
)
def test_a_map_with_a_part_missing_is_refused(kind, shapes, missing, tmp_path):
    present = {name: shape for name, shape in shapes.items() if name != missing}
    write_tensors(tmp_path / "m", ones(present, {}), kind.__name__, FitInfo(), {})
    refused(tmp_path / "m", kind)


def test_a_header_that_is_quoted_is_cut_short(tmp_path):
    header = json.dumps("a" * 5000).encode()
    (tmp_path / "m").write_bytes(len(header).to_bytes(8, "little") + header)
    assert len(refused(tmp_path / "m")) < 400 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("about", "named"),
    [
        ('{"format": "ot_lens.map/2", "kind": "AffineMap", "info": {}}', None),
        ('{"format": "ot_lens.map/1", "kind": "AffineMap", "info": {}}', "'AffineMap'"),
        ('{"format": "ot_lens.map/2", "kind": "SupportMask", "info": {}}', "'SupportMask'"),
        ('{"format": "ot_lens.map/2", "kind": "AffineMap"}', "the description"),
        ("[", "nothing"),
        ("[]", "nothing"),
        ("{}", "nothing"),
    ],
)
def test_format_kind_and_description_must_be_right(about, named, tmp_path):
    save_file(ones(WHOLE, {}), tmp_path / "m", {"ot_lens": about})
    if named is None:
        assert AffineMap.load(tmp_path / "m").d_model == 3
    else:
        with pytest.raises(RunFolderError, match=named):
            AffineMap.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("info", "named"),
    [
        (None, "the description"),
        ([{}], "the description"),
        ({"layer": "four"}, "layer"),
        ({"notes": [3]}, r"notes\.0"),
        ({"flux": 1, "k": 1}, "flux"),
    ],
)
def test_a_description_of_wrong_types_or_of_a_newer_version_is_refused(info, named):
    with pytest.raises(RunFolderError, match=named):
        FitInfo.from_dict(info)


@pytest.mark.parametrize(
    ("change", "dtypes"),
    [
        ({"U": (2, 1)}, {}),
        ({"V": (3, 2)}, {}),
        ({"U": (2, 1), "V": (2, 1)}, {}),
        ({"U": (3,), "V": (3,)}, {}),
        ({"U": (3, 1, 1), "V": (3, 1, 1)}, {}),
        ({"bias": (3, 1)}, {}),
        ({"scale": (2,)}, {}),
        ({"scale": ()}, {}),
        ({"U": (0, 1), "V": (0, 1), "bias": (0,), "scale": (0,)}, {}),
        ({}, {"U": torch.float32}),
        ({}, {"scale": torch.float16}),
        ({}, {"default": torch.int64}),
    ],
)
def test_tensors_that_make_no_map_are_refused(change, dtypes, tmp_path):
    write_tensors(tmp_path / "m", ones(WHOLE | change, dtypes), "AffineMap", FitInfo(), {})
    assert re.search(r"U \[[\d, ]*\] torch\.\w+, V", refused(tmp_path / "m")), "what they are is shown"


@pytest.mark.parametrize("part", ["U", "V", "bias", "scale"])
def test_a_map_with_nan_is_refused(part, tmp_path):
    parts = ones(WHOLE, {})
    parts[part].view(-1)[0] = torch.nan
    write_tensors(tmp_path / "m", parts, "AffineMap", FitInfo(), {})
    refused(tmp_path / "m")
