import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import OAS, LedoitWolf
from torch.testing import assert_close

from ot_lens.errors import ActivationError, FitError
from ot_lens.moments import Moments, merge_all, shrinkage_intensity
from tests.generators import naive
from tests.generators.gaussians import classes, normal


def same(a: Moments, b: Moments, *, tolerance: float = 1e-10) -> None:
    assert a.n == b.n
    scale = float(a.factor.square().sum())
    assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    assert_close(a.factor.T @ a.factor, b.factor.T @ b.factor, rtol=0, atol=tolerance * scale)
    assert a.trace == pytest.approx(b.trace, rel=tolerance)
    assert a.quartic == pytest.approx(b.quartic, rel=tolerance)
    assert_close(a.cubic, b.cubic, rtol=0, atol=tolerance * scale**1.5)


def test_moments_by_hand():
    m = Moments.of(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    assert (m.n, m.mean.tolist(), m.trace, m.quartic) == (2, [2.0, 0.0], 2.0, 2.0)
    assert_close(
        m.covariance_factor().T @ m.covariance_factor(), torch.diag(torch.tensor([2.0, 0.0])).double()
    )


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=6), st.randoms(use_true_random=False), st.integers(0, 99)
)
@settings(max_examples=30)
def test_shards_merge_in_any_order_to_the_same_moments(sizes, random, seed):
    X = normal(sum(sizes), 12, seed=seed) + 100 * normal(12, seed=seed + 1)
    parts = [Moments.of(part) for part in X.split(sizes)]
    random.shuffle(parts)
    same(merge_all(parts), Moments.of(X))
    same(parts[0].merge(merge_all(parts[1:])), Moments.of(X))
    one_by_one = Moments.empty(12)
    for row in X.split(1):
        one_by_one = one_by_one.add(row)
    same(one_by_one, Moments.of(X))


def test_moments_are_those_of_the_textbook():
    X = normal(30, 8, seed=0) + 5
    m = merge_all([Moments.of(X[:11]), Moments.of(X[11:])])
    Z = X - X.mean(0)
    assert_close(m.covariance_factor().T @ m.covariance_factor(), naive.covariance(X))
    assert m.quartic == pytest.approx(float(Z.square().sum(1).square().sum()))
    assert_close(m.cubic, (Z * Z.square().sum(1, keepdim=True)).sum(0))


def test_compressed_scatter_keeps_its_stated_bound():
    X = normal(400, 60, seed=1) * torch.linspace(2, 0.1, 60, dtype=torch.float64) + 3
    limit = 10
    m = Moments.empty(60, limit=limit)
    for part in X.split(23):
        m = m.add(part)
    exact = Moments.of(X)
    gap = exact.factor.T @ exact.factor - m.factor.T @ m.factor
    eigenvalues = torch.linalg.eigvalsh(gap)
    assert len(m.factor) <= 2 * limit
    assert eigenvalues[0] > -1e-8 * exact.trace, "never overestimated"
    assert 0 < float(eigenvalues[-1]) <= m.lost <= exact.trace / limit
    assert m.trace == pytest.approx(exact.trace)
    assert_close(m.mean, exact.mean)


@pytest.mark.parametrize(("n", "d"), [(20, 200), (200, 20), (2, 50), (30, 30)])
@pytest.mark.parametrize(("method", "peer"), [("ledoit_wolf", LedoitWolf), ("oas", OAS)])
def test_shrinkage_is_that_of_scikit_learn(n, d, method, peer):
    X = classes(n, n, d, seed=3)[0]
    theirs = peer().fit(X.numpy())
    assert float(shrinkage_intensity(X - X.mean(0), method)) == pytest.approx(theirs.shrinkage_, rel=1e-8)
    streamed = merge_all([Moments.of(part) for part in X.split(7)])
    assert streamed.shrinkage(method) == pytest.approx(theirs.shrinkage_, rel=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: Moments.of(torch.tensor([[torch.nan]])), ActivationError, "NaN"),
        (lambda: Moments.empty(2).merge(Moments.empty(3)), ActivationError, "widths 2 and 3"),
        (lambda: Moments.empty(2, limit=0), ActivationError, "limit = 0"),
        (lambda: Moments.of(torch.ones(1, 2)).covariance_factor(), ActivationError, "n = 1"),
        (lambda: merge_all([]), ActivationError, "merge"),
        (lambda: Moments.of(torch.ones(3, 2)).shrinkage("lw"), FitError, "'lw'"),
        (lambda: shrinkage_intensity(torch.ones(3, 2).double(), "lw"), FitError, "'lw'"),
    ],
)
def test_bad_input_is_named(call, error, named):
    with pytest.raises(error, match=named):
        call()


# --- boundaries


def test_more_rows_than_coordinates_are_kept_exactly():
    X = normal(500, 6, seed=2)
    m = merge_all([Moments.of(part) for part in X.split(7)])
    assert (m.limit, m.lost) == (1024, 0.0)
    assert len(m.factor) <= 12
    same(m, Moments.of(X))
    assert len(Moments.of(normal(17, 8, seed=6)).factor) == 8, "18 rows of width 8 are 8 rows as well"


def test_a_compression_takes_the_first_direction_it_drops_from_those_it_keeps():
    # Frequent Directions by hand: squared singular values 16, 9, 4, 1 and two rows kept, each less 4.
    for scale in (1.0, 0.1):
        rows = scale * torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])).double()
        X = torch.cat([rows, -rows]) / 2**0.5
        m = Moments.of(torch.nn.functional.pad(X, (0, 5)), limit=2)
        assert m.lost == pytest.approx(4.0 * scale**2)
        squares = torch.linalg.svdvals(m.factor).square()
        assert_close(squares, scale**2 * torch.tensor([12.0, 5.0]).double())


def test_no_samples_add_nothing():
    X = normal(6, 4, seed=8)
    nothing = Moments.empty(4)
    same(nothing.merge(Moments.of(X)), Moments.of(X))
    same(Moments.of(X).merge(nothing), Moments.of(X))
    assert nothing.merge(Moments.empty(4, limit=3)).n == 0
    assert Moments.empty(4, device="meta").mean.device.type == "meta"
    one = Moments.empty(4).add(X[:1])
    assert (one.n, one.trace, one.lost) == (1, 0.0, 0.0)
    assert torch.equal(one.mean, X[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("method", "peer"), [("ledoit_wolf", LedoitWolf), ("oas", OAS)])
def test_shrinkage_of_a_sphere_or_a_line_is_that_of_scikit_learn(method, peer, seed):
    # Round samples are shrunk completely, samples along a line hardly: both ends of the interval.
    for X in (normal(4, 3, seed=seed), normal(60, 1, seed=seed) * normal(1, 6, seed=seed + 1)):
        theirs = peer().fit(X.numpy()).shrinkage_
        assert float(shrinkage_intensity(X - X.mean(0), method)) == pytest.approx(theirs, rel=1e-7, abs=1e-12)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    theirs = peer().fit(corners.numpy()).shrinkage_
    assert float(shrinkage_intensity(corners, method)) == pytest.approx(theirs)


def test_a_point_is_not_shrunk_by_ledoit_wolf_and_wholly_by_oas():
    point = torch.zeros(5, 3, dtype=torch.float64)
    assert float(shrinkage_intensity(point, "ledoit_wolf")) == 0.0
    assert float(shrinkage_intensity(point, "oas")) == 1.0
