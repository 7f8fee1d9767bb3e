"""Maps on disk: what is stored comes back, and what is no map is refused by name."""

import json
import re
from pathlib import Path

import pytest
import torch

from ot_lens.errors import RunFolderError
from ot_lens.transport import AffineMap, FitInfo
from tests.generators.gaussians import normal


@pytest.mark.parametrize("missing", ["U", "V", "bias"])
def test_a_map_with_a_part_missing_is_refused(missing, tmp_path):
    from ot_lens.transport.storage import write_tensors

    parts = {name: torch.zeros(2, 1) for name in ("U", "V", "bias") if name != missing}
    write_tensors(tmp_path / "m.safetensors", parts, "AffineMap", FitInfo())
    with pytest.raises(RunFolderError) as caught:
        AffineMap.load(tmp_path / "m.safetensors")
    assert str(tmp_path / "m.safetensors") in str(caught.value)


def test_what_is_stored_instead_of_a_map_is_named(tmp_path):
    from safetensors.torch import save_file

    other = tmp_path / "other.safetensors"
    save_file({"U": torch.zeros(1)}, other)
    with pytest.raises(RunFolderError) as caught:
        AffineMap.load(other)
    assert str(other) in str(caught.value)
    with pytest.raises(RunFolderError) as caught:
        AffineMap.load(str(tmp_path / "none"))
    assert str(tmp_path / "none") in str(caught.value)
    with pytest.raises(RunFolderError, match="is a folder"):
        AffineMap.load(tmp_path)
    other.write_bytes(b"\x00" * 3)
    with pytest.raises(RunFolderError) as caught:
        AffineMap.load(other)
    assert str(caught.value).startswith(f"{other} is not a complete safetensors file (")
    assert str(caught.value).endswith("): write it again.")


def test_a_header_that_is_quoted_is_cut_short(tmp_path):
    header = json.dumps("a" * 5000).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(RunFolderError, match=r"invalid JSON in header.* \.\.\.\): write it again") as caught:
        AffineMap.load(path)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("about", "ok"),
    [
        ({"format": "ot_lens.map/2", "kind": "AffineMap", "info": {}}, True),
        ({"format": "ot_lens.map/1", "kind": "AffineMap", "info": {}}, False),
        ({"format": "ot_lens.map/2", "kind": "SupportMask", "info": {}}, False),
    ],
)
def test_format_and_kind_must_both_be_right(about, ok, tmp_path):
    from safetensors.torch import save_file

    parts = {"U": torch.zeros(2, 1), "V": torch.zeros(2, 1), "bias": torch.zeros(2)}
    save_file(parts, tmp_path / "m", {"ot_lens": json.dumps(about)})
    if ok:
        assert AffineMap.load(tmp_path / "m").d_model == 2
    else:
        with pytest.raises(RunFolderError, match=f"but '{about['kind']}'"):
            AffineMap.load(tmp_path / "m")


WHOLE = {"U": (3, 1), "V": (3, 1), "bias": (3,), "scale": (3,)}


def stored(path: Path, shapes: dict, dtypes: dict | None = None) -> None:
    from ot_lens.transport.storage import write_tensors

    chosen = {"default": torch.float64, **(dtypes or {})}
    parts = {
        name: torch.ones(shape, dtype=chosen.get(name, chosen["default"])) for name, shape in shapes.items()
    }
    write_tensors(path, parts, "AffineMap", FitInfo())


@pytest.mark.parametrize(
    "shapes",
    [
        WHOLE,
        {"U": (3, 0), "V": (3, 0), "bias": (3,)},
        {"U": (1, 1), "V": (1, 1), "bias": (1,)},
        {"U": (3, 3), "V": (3, 3), "bias": (3,)},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensors_that_make_a_map_are_taken(shapes, dtype, tmp_path):
    stored(tmp_path / "m", shapes, {"default": dtype})
    assert AffineMap.load(tmp_path / "m").U.shape == shapes["U"]


@pytest.mark.parametrize(
    ("change", "dtypes"),
    [
        ({"U": (2, 1)}, {}),
        ({"U": (3, 2)}, {}),
        ({"V": (3, 2)}, {}),
        ({"U": (2, 1), "V": (2, 1)}, {}),
        ({"U": (3,), "V": (3,)}, {}),
        ({"U": (3, 1, 1), "V": (3, 1, 1)}, {}),
        ({"bias": (3, 1)}, {}),
        ({"bias": (2,)}, {}),
        ({"scale": (2,)}, {}),
        ({"scale": ()}, {}),
        ({"U": (0, 1), "V": (0, 1), "bias": (0,), "scale": (0,)}, {}),
        ({}, {"U": torch.float32}),
        ({}, {"scale": torch.float16}),
        ({}, {"default": torch.int64}),
    ],
)
def test_tensors_that_make_no_map_are_refused(change, dtypes, tmp_path):
    path, shapes = tmp_path / "m", WHOLE | change
    stored(path, shapes, dtypes)
    with pytest.raises(RunFolderError) as caught:
        AffineMap.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path} holds tensors that do not form a map (")
    assert text.endswith("): write it again.")
    assert re.search(r"U \[[\d, ]*\] torch\.\w+, V", text), "what they are is shown"


@pytest.mark.parametrize("part", ["U", "V", "bias", "scale"])
def test_a_map_of_no_number_is_refused(part, tmp_path):
    from ot_lens.transport.storage import write_tensors

    parts = {name: torch.ones(shape) for name, shape in WHOLE.items()}
    parts[part].view(-1)[0] = torch.nan
    write_tensors(tmp_path / "m", parts, "AffineMap", FitInfo())
    with pytest.raises(RunFolderError, match="do not form a map"):
        AffineMap.load(tmp_path / "m")


def test_what_is_stored_is_detached_and_whole(tmp_path):
    U, V = normal(4, 2, seed=26), normal(4, 2, seed=27)
    T = AffineMap(U, V, normal(4, seed=28), info=FitInfo("low"))
    strided = AffineMap(T.V.flip(0).T.contiguous().T.requires_grad_(), T.V, T.bias, info=T.info)
    strided.save(str(tmp_path / "m"))
    assert torch.equal(AffineMap.load(tmp_path / "m").U, strided.U)
    assert AffineMap.load(str(tmp_path / "m")).info == T.info
