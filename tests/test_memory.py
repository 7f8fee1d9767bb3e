import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.activations import memory as streaming
from tests.benchmarks.memory import D, peak_growth

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
ROOT = Path(__file__).resolve().parents[1]


def test_nothing_of_size_d_by_d_is_allocated():
    # Every fit, distance and table once at d = 16384, where a float64 d x d matrix takes 2 GiB.
    assert peak_growth() < 8 * D * D / 5


@pytest.mark.trust
def test_the_check_would_see_a_d_by_d_matrix():
    assert peak_growth(6000, extra="torch.ones(d, d, dtype=torch.float64)") > 8 * 6000 * 6000


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    work = tmp_path_factory.mktemp("stores")
    done = subprocess.run(
        [sys.executable, "-m", streaming.__name__, str(work)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.trust
@pytest.mark.parametrize("how", ["store", "resumed", "opened", "moments"])
def test_memory_does_not_grow_with_the_number_of_prompts(peaks, how):
    more = (streaming.MANY - streaming.FEW) * streaming.BYTES
    assert peaks[how]["many"] - peaks[how]["few"] < more / 6
    if how in ("resumed", "opened"):
        assert peaks[how]["many"] < more / 20


def test_the_check_would_see_activations_in_memory(peaks):
    more = (streaming.MANY - streaming.FEW) * streaming.BYTES
    assert peaks["in memory"]["many"] - peaks["in memory"]["few"] > more / 2
