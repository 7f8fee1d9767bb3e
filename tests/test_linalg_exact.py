"""Boundaries of the linear algebra: batches of unlike layers, what is rounding and what is not, threads."""

import math
import threading

import pytest
import torch
from torch.testing import assert_close

from ot_lens.errors import ActivationError, OtLensTypeError
from ot_lens.linalg import (
    Pooled,
    check_pair,
    check_samples,
    checks_samples,
    gram_spectrum,
    mapped,
    monotone_coupling,
    nuclear_norm,
    numerical_rank,
    one_thread,
    principal_axes,
    psd_eigen,
)
from tests.generators.gaussians import normal

EPS = torch.finfo(torch.float64).eps


def rank(X: torch.Tensor) -> list[int]:
    Z = X - X.mean(-2, keepdim=True)
    return numerical_rank(gram_spectrum(Z)[0], X.norm(dim=-1).amax(-1)).tolist()


# --- layers of a batch do not see each other


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5), (6, 6)])
def test_a_batched_spectrum_is_that_of_each_layer(n, d):
    Z = normal(3, n, d, seed=0)
    values, vectors = gram_spectrum(Z)
    assert values.shape == (3, min(n, d))
    assert vectors.shape == (3, n, min(n, d))
    assert_close(values, torch.linalg.svdvals(Z).square(), rtol=1e-11, atol=1e-11)
    assert_close(Z @ Z.mT @ vectors, vectors * values.unsqueeze(1), rtol=1e-10, atol=1e-10)


def test_rank_is_judged_layer_by_layer():
    small, large = normal(6, 20, seed=1), 1e9 * normal(6, 20, seed=2)
    assert rank(torch.stack([small, large])) == [5, 5]


def test_negative_eigenvalues_are_judged_layer_by_layer():
    small, large = torch.diag(torch.tensor([-1e-3, 1.0])).double(), 1e14 * torch.eye(2).double()
    assert psd_eigen(torch.stack([small, large]))[2].tolist() == [1, 0]


def test_pooled_samples_are_judged_coordinate_by_coordinate_and_layer_by_layer():
    H, S = torch.full((2, 27, 3), 0.1).double(), torch.full((2, 4, 3), 0.1).double()
    H[0, 0, 1], H[:, :, 2], S[:, :, 2] = 5.0, 1e3 / 3, 1e3 / 3
    Z = Pooled.of(H, S).Z
    assert torch.equal(Z[0, :, [0, 2]], torch.zeros(31, 2, dtype=Z.dtype))
    assert torch.equal(Z[1], torch.zeros(31, 3, dtype=Z.dtype))
    assert_close(Z[0, :, 1], torch.cat([H, S], 1)[0, :, 1] - (5 + 30 * 0.1) / 31)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_one_sample_aside_is_kept_on_either_side(side):
    H, S = torch.full((40, 1), 1.0).double(), torch.full((40, 1), 1.0).double()
    H[0] += side * 100 * EPS
    assert float(Pooled.of(H, S).Z.abs().max()) > 50 * EPS


def test_coordinates_of_value_zero_stay_zero():
    Z = Pooled.of(torch.zeros(3, 2).double(), torch.zeros(4, 2).double()).Z
    assert torch.equal(Z, torch.zeros(7, 2, dtype=Z.dtype))


# --- what is rounding and what is not


@pytest.mark.parametrize(("n", "d"), [(9, 50), (50, 9)])
def test_a_small_spread_far_from_the_origin_has_a_rank_until_it_drowns_in_rounding(n, d):
    spread, far = normal(n, d, seed=3), normal(d, seed=4)
    full = min(n - 1, d)
    assert rank(spread + far) == full
    assert rank(1e-10 * spread + far) == full
    assert rank(1e-17 * spread + far) == 0
    assert rank(torch.zeros(n, d).double()) == 0


def test_eigenvalues_far_below_the_largest_are_rounding():
    values = torch.tensor([1.0, 1e-10, 4 * EPS, 2 * EPS]).double()
    assert int(numerical_rank(values, torch.tensor(0.0).double())) == 2
    assert int(numerical_rank(values.flip(0), torch.tensor(0.0).double())) == 2


def test_negative_eigenvalues_count_from_the_rounding_of_the_largest_on():
    for scale in (1e-8, 1.0, 1e8):
        C = scale * torch.diag(torch.tensor([-4 * EPS, -2 * EPS, 1.0], dtype=torch.float64))
        values, _, negative = psd_eigen(C)
        assert int(negative) == 1
        assert values.tolist() == [0.0, 0.0, scale]


def test_the_exact_nuclear_norm_is_what_one_gets_unasked():
    M = normal(64, 3, seed=5) @ normal(3, 64, seed=6)
    exact = float(torch.linalg.svdvals(M).sum())
    assert float(nuclear_norm(M)) == pytest.approx(exact, rel=1e-14)
    assert float(nuclear_norm(M, fast=True)) != pytest.approx(exact, rel=1e-12)


def test_each_axis_points_to_the_side_of_its_largest_coordinate():
    for seed in range(7, 12):
        Z = normal(4, 10, 20, seed=seed)
        axes = principal_axes(Z, gram_spectrum(Z)[1], 5)
        assert bool((axes.gather(-2, axes.abs().argmax(-2, keepdim=True)) > 0).all())
        assert_close(axes.mT @ axes, torch.eye(5, dtype=Z.dtype).expand(4, 5, 5), rtol=0, atol=1e-13)


# --- the coupling


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (4, 4), (4, 6), (6, 9), (7, 5)])
def test_the_plan_has_as_many_pairs_as_there_are_cuts(n, m):
    i, j, mass = monotone_coupling(n, m)
    assert len(mass) == n + m - math.gcd(n, m)
    assert bool((mass > 0).all())
    assert bool((i.diff() >= 0).all())
    assert bool((j.diff() >= 0).all())


def test_the_plan_is_made_where_it_is_asked_for():
    with torch.device("meta"):  # where whatever forgets the device would end
        assert {part.device.type for part in monotone_coupling(2, 3, "cpu")} == {"cpu"}


# --- threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_items_are_mapped_two_at_a_time_each_on_one_thread(two_threads):
    together, running, most, lock = threading.Barrier(2, timeout=20), 0, 0, threading.Lock()

    def work(item: int) -> tuple[int, int, int]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1
        together.wait()
        return item, torch.get_num_threads(), threading.get_ident()

    found = mapped(work, range(6))
    assert [item for item, _, _ in found] == list(range(6))
    assert {threads for _, threads, _ in found} == {1}
    assert threading.get_ident() not in {thread for _, _, thread in found}
    assert most == 2
    assert torch.get_num_threads() == 2


def test_on_one_thread_items_are_mapped_here(two_threads):
    torch.set_num_threads(1)
    found = mapped(lambda item: (item, threading.get_ident()), "abc")
    assert found == [(item, threading.get_ident()) for item in "abc"]


def test_threads_are_given_back_after_an_error(two_threads):
    def failing() -> None:
        with one_thread() as before:
            assert (before, torch.get_num_threads()) == (2, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        mapped(lambda item: 1 // item, [1, 0])
    assert torch.get_num_threads() == 2


# --- samples at the door


BAD = {
    "is a list, not a torch.Tensor: convert it with torch.as_tensor": (OtLensTypeError, [[0.0, 1.0]]),
    "has dtype torch.bool: samples must be real floating point, e.g. {name}.float()": (
        ActivationError,
        torch.zeros(3, 2, dtype=torch.bool),
    ),
    "has shape [1, 3, 2]: expected [n, d], one sample a row (choose layer and position)": (
        ActivationError,
        torch.zeros(1, 3, 2),
    ),
    "has n = 1 rows: at least 2 samples a class are needed": (ActivationError, torch.zeros(1, 2)),
    "has shape [3, 0]: the samples have no coordinates": (ActivationError, torch.zeros(3, 0)),
    "has NaN or Inf in 2 of 4 rows (first: row 1): drop those prompts or capture in bfloat16 or float32": (
        ActivationError,
        torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [2.0, 2.0], [0.0, -torch.inf]]),
    ),
}


@pytest.mark.parametrize("words", list(BAD))
def test_the_class_at_fault_is_named(words):
    error, bad = BAD[words]
    good = torch.zeros(4, 2)
    for pair, name in (((bad, good), "left"), ((good, bad), "right")):
        with pytest.raises(error) as caught:
            check_pair(*pair, names=("left", "right"))
        assert str(caught.value) == f"{name} {words.format(name=name)}"
    with pytest.raises(error) as caught:
        check_samples(bad)
    assert str(caught.value) == f"x {words.format(name='x')}"


def test_classes_that_do_not_go_together_are_both_named():
    with pytest.raises(ActivationError) as caught:
        check_pair(torch.zeros(3, 2), torch.zeros(3, 5), names=("left", "right"))
    assert str(caught.value) == (
        "the classes differ in width: left has d = 2, right d = 5; take both from one layer of one model"
    )
    with pytest.raises(ActivationError) as caught:
        check_pair(torch.zeros(3, 2), torch.zeros(3, 2, device="meta"), names=("left", "right"))
    assert str(caught.value) == "left is on cpu and right on meta: move both to one device"


def test_as_few_samples_are_taken_as_asked_for():
    one, two = torch.ones(1, 3), torch.ones(2, 3)
    for pair in ((one, one), (one, two), (two, one)):
        assert [len(part) for part in check_pair(*pair, least=1)] == [len(part) for part in pair]
    assert [len(part) for part in check_pair(two, two)] == [2, 2]
    with pytest.raises(ActivationError, match="H has n = 2 rows: at least 3 samples"):
        check_pair(two, torch.ones(3, 3), least=3)
    with pytest.raises(ActivationError, match="S has n = 2 rows: at least 3 samples"):
        check_pair(torch.ones(3, 3), two, least=3)


def test_huge_finite_samples_are_no_infinity():
    huge = torch.full((3, 2), 1.7e308, dtype=torch.float64)
    assert torch.equal(check_samples(huge), huge), "their sum overflows, they do not"


def test_a_decorated_function_gets_checked_samples_and_every_other_argument():
    @checks_samples
    def sizes(H, S, power, *, factor=1):
        """How many."""
        return H.dtype, len(H) ** power * factor, len(S)

    assert sizes(torch.ones(3, 2, dtype=torch.float16), torch.ones(4, 2), 2, factor=5) == (
        torch.float64,
        45,
        4,
    )
    assert sizes.__name__ == "sizes"
    assert sizes.__doc__ == "How many."
    with pytest.raises(ActivationError, match="S has n = 1 rows"):
        sizes(torch.ones(3, 2), torch.ones(1, 2), 2)
