import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError, NotInvertibleError, RunFolderError
from ot_lens.transport import METHODS, AffineMap, FitInfo, fit_ace, fit_directional_ablation, fit_pca_ot
from tests.generators import naive
from tests.generators.gaussians import classes, normal

KINDS = st.sampled_from(["shift", "diagonal", "low rank", "both"])


def random_map(kind: str, d: int, seed: int) -> AffineMap:
    k = 0 if kind in ("shift", "diagonal") else 2
    scale = None if kind in ("shift", "low rank") else 0.5 + normal(d, seed=seed).abs()
    U, V = normal(d, k, seed=seed + 1) / d**0.5, normal(d, k, seed=seed + 2)
    return AffineMap(U, V, normal(d, seed=seed + 3), scale, FitInfo(method=kind))


@given(KINDS, st.integers(2, 12), st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_map_is_its_dense_matrix(kind, d, seed):
    T, x = random_map(kind, d, seed), normal(3, 5, d, seed=seed + 9)
    assert_close(T.map(x), naive.apply(x, T.U, T.V, T.bias, T.scale))
    assert torch.equal(T(x), T.map(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (0, 6)])
def test_map_keeps_dtype_and_shape(dtype, shape):
    T, x = random_map("both", 6, 1), torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    moved = T.map(x)
    assert moved.dtype == dtype
    assert moved.shape == x.shape
    exact = naive.apply(x.double(), T.U, T.V, T.bias, T.scale)
    eps = torch.finfo(dtype).eps
    assert_close(moved.double(), exact, rtol=4 * eps, atol=20 * eps)


def test_half_precision_is_computed_in_float32():
    # 300 * 300 overflows float16 on the way, the image does not.
    V = torch.full((2, 1), 300.0, dtype=torch.float64)
    T = AffineMap(-V / 180_000, V, torch.zeros(2, dtype=torch.float64))
    x = torch.tensor([[300.0, 200.0]], dtype=torch.float16)
    assert_close(T.map(x), torch.tensor([[50.0, -50.0]], dtype=torch.float16))


def test_overflow_on_the_way_back_is_an_error():
    T = AffineMap(torch.zeros(2, 0), torch.zeros(2, 0), torch.tensor([6e4, 0.0]))
    x = torch.full((1, 2), 6e4, dtype=torch.float16)
    with pytest.raises(ActivationError, match="overflows"):
        T.map(x)
    assert torch.isfinite(T.map(x.bfloat16())).all()
    infinite = torch.full((1, 2), torch.inf, dtype=torch.float16)
    assert torch.isinf(T.map(infinite)).all(), "what came in infinite is the model's own"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_identity_is_bit_equal(dtype):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0] = -0.0
    assert AffineMap.identity(4).map(x) is x
    assert random_map("both", 4, 0).at(0.0).map(x) is x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(2, 5), "width d = 6"),
        (torch.zeros(2, 6, dtype=torch.int64), "int64"),
        (torch.zeros(2, 6, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 6, device="meta"), "meta"),
    ],
)
def test_bad_activations_are_named(x, words):
    with pytest.raises(ActivationError, match=words):
        random_map("both", 6, 0).map(x)


def test_map_lets_gradients_through():
    T, x = random_map("both", 5, 3), normal(2, 5, seed=1).requires_grad_()
    T.map(x).sum().backward()
    matrix = torch.diag(T.scale) + T.U @ T.V.T
    assert_close(x.grad, matrix.sum(0).expand(2, -1))


@given(KINDS, st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_strength_interpolates_linearly(kind, t, seed):
    T, x = random_map(kind, 5, seed), normal(7, 5, seed=seed + 1)
    assert_close(T.at(t).map(x), x + t * (T.map(x) - x))
    assert T.at(t).info.strength == t


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_strength_outside_the_unit_interval_is_refused(t):
    with pytest.raises(FitError, match="outside"):
        random_map("shift", 3, 0).at(t)


@given(KINDS, KINDS, st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_composition_is_exact(first, second, seed):
    F, G, x = random_map(first, 8, seed), random_map(second, 8, seed + 50), normal(4, 8, seed=seed + 1)
    both = G.compose(F)
    assert_close(both.map(x), G.map(F.map(x)), rtol=1e-10, atol=1e-10)
    assert both.rank <= F.rank + G.rank
    assert_close(both.U.T @ both.U, torch.eye(both.rank, dtype=torch.float64))


def test_composition_truncates_what_cancels():
    H, S = classes(40, 50, 30, seed=0)
    once = fit_directional_ablation(H, S)
    assert once.compose(once).rank == 1
    T = fit_pca_ot(H, S, k=3)
    assert T.inverse().compose(T).rank == 0 or T.inverse().compose(T).V.abs().max() < 1e-9


@given(KINDS, st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_inverse_undoes(kind, seed):
    T, x = random_map(kind, 8, seed), normal(4, 8, seed=seed + 1)
    assert_close(T.inverse().map(T.map(x)), x, rtol=1e-7, atol=1e-7)


def test_a_projection_has_no_inverse_but_a_partial_one_has():
    H, S = classes(40, 50, 30, seed=0)
    for fitted in (fit_directional_ablation(H, S), fit_ace(H, S)):
        with pytest.raises(NotInvertibleError, match="projection"):
            fitted.inverse()
        assert_close(fitted.at(0.5).inverse().map(fitted.at(0.5).map(H)), H)
    flat = AffineMap(torch.zeros(3, 0), torch.zeros(3, 0), torch.zeros(3), torch.tensor([1.0, 0.0, 2.0]))
    with pytest.raises(NotInvertibleError, match="1 coordinates"):
        flat.inverse()


def test_an_inverse_survives_eigenvalues_of_both_extremes():
    Q = torch.linalg.qr(normal(20, 4, seed=0)).Q
    a = torch.tensor([1e-6, 1e-3, 1e3, 1e6], dtype=torch.float64)
    T = AffineMap(Q, Q * (a - 1), torch.zeros(20, dtype=torch.float64))
    assert_close((T.inverse().map(Q.T) @ Q).diagonal(), 1 / a, rtol=1e-7, atol=0)


def test_to_takes_what_torch_takes():
    T = random_map("both", 4, 0)
    for moved in (
        T.to(torch.float32),
        T.to("cpu", torch.float32),
        T.to(torch.float32, "cpu"),
        T.to(dtype=torch.float32),
    ):
        assert moved.dtype == torch.float32
        assert moved.device == torch.device("cpu")
        assert moved.info == T.info
    assert T.to("cpu").dtype == torch.float64
    with pytest.raises(FitError, match="int64"):
        T.to(torch.int64)


@pytest.mark.parametrize("kind", ["shift", "both"])
def test_a_stored_map_comes_back_bit_equal(kind, tmp_path):
    T = random_map(kind, 4, 0).labelled(
        layer=4, position=-1, hook="resid_pre", seed=7, k=2, n_harmful=9, notes=("a",)
    )
    T.save(tmp_path / "maps" / "4.safetensors")
    back = AffineMap.load(tmp_path / "maps" / "4.safetensors")
    assert back.info == T.info
    for name in ("U", "V", "bias"):
        assert torch.equal(getattr(back, name), getattr(T, name))
    assert (back.scale is None) == (T.scale is None)
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["4.safetensors"]


def test_what_is_no_stored_map_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="does not exist"):
        AffineMap.load(tmp_path / "none.safetensors")
    torn = tmp_path / "torn.safetensors"
    random_map("both", 4, 0).save(torn)
    torn.write_bytes(torn.read_bytes()[:-9])
    with pytest.raises(RunFolderError, match="not a complete safetensors"):
        AffineMap.load(torn)
    from safetensors.torch import save_file

    save_file({"U": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(RunFolderError, match="not a stored AffineMap"):
        AffineMap.load(tmp_path / "other.safetensors")


def test_equal_maps_give_equal_bytes(tmp_path):
    T = random_map("both", 4, 0).labelled(layer=4, position=-1, hook="resid_pre", seed=7)
    for name in "abcd":
        T.save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcd"}) == 1


@pytest.mark.parametrize("about", ["[", "[]", "{}", '{"format": "ot_lens.map/2", "kind": "AffineMap"}'])
def test_a_damaged_description_is_refused(tmp_path, about):
    from safetensors.torch import save_file

    parts = {name: torch.zeros(2, 1) for name in ("U", "V", "bias")}
    save_file(parts, tmp_path / "map.safetensors", {"ot_lens": about})
    with pytest.raises(RunFolderError, match=r"not a stored AffineMap|damaged"):
        AffineMap.load(tmp_path / "map.safetensors")


@pytest.mark.parametrize("info", [None, [{}], "x", {"layer": "four"}, {"notes": 3}])
def test_a_description_of_wrong_types_is_refused(info):
    with pytest.raises(RunFolderError, match="damaged"):
        FitInfo.from_dict(info)


def test_a_newer_format_is_refused():
    with pytest.raises(RunFolderError, match="newer"):
        FitInfo.from_dict({"flux": 1})


def test_repr_says_what_matters():
    T = random_map("both", 4, 0).labelled(method="pca_ot", layer=4, n_harmful=5, n_harmless=6).at(0.5)
    assert (
        repr(T)
        == "AffineMap(pca_ot, layer 4, d = 4, rank 2, diagonal, n = 5 + 6, strength 0.5, torch.float64)"
    )


def test_a_notebook_shows_the_formula_the_place_and_the_diagnosis():
    H, S = normal(2, 12, 5, seed=0)
    shown = fit_pca_ot(H, S, k=2).labelled(layer=3, hook="resid_pre").at(0.5)._repr_html_()
    for fact in ("pca_ot", "P (A - I)", ">3<", "resid_pre", "12 harmful", ">0.5<", "condition number"):
        assert fact in shown
    assert "problems" not in shown


def test_a_notebook_shows_problems_and_escapes_names():
    shown = AffineMap.identity(3).labelled(method="<mine>", problems=("too few prompts",))._repr_html_()
    assert "&lt;mine&gt;" in shown
    assert "<mine>" not in shown
    assert "too few prompts" in shown
    assert "U (Vᵀ x)" in shown  # a method that is not known here has the general form


def test_every_method_of_the_package_has_its_formula():
    assert all(method.formula for method in METHODS.values())
