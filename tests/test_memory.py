import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.activations import memory as streaming

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
ROOT = Path(__file__).resolve().parents[1]
D = 16384

# Runs in a process of its own, where nothing else allocates.
SCRIPT = """
import json, sys, torch
from pathlib import Path
import ot_lens.geometry, ot_lens.gaussian, ot_lens.moments, ot_lens.transport as transport
sys.path.insert(0, {root!r})
from tests.generators.gaussians import Layers
d, n = {d}, 24
H, S = torch.randn(2, n, d, dtype=torch.float64), torch.randn(2, n, d, dtype=torch.float64)
acts = Layers(H, S, (0, 1))
def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
small = Layers(H[..., :64], S[..., :64], (0, 1))
def work(acts):
    few = dict(permutations=4, bootstrap=4)
    for method in (name for name, known in transport.METHODS.items() if known.fit is not None):
        maps = transport.fit_all(acts, method)
        moved = maps[0].map(acts.harmful(0))
    T = transport.fit_gaussian_ot(acts.harmful(0), acts.harmless(0))
    T.inverse().compose(T).at(0.5).map(moved)
    transport.restrict_to_support(transport.AffineMap.identity(acts.source.shape[-1]), acts.harmful(0))
    ot_lens.gaussian.bures_wasserstein(acts.harmful(0), acts.harmless(0), shrinkage="oas")
    shards = [ot_lens.moments.Moments.of(part) for part in acts.harmful(0).split(5)]
    ot_lens.moments.merge_all(shards).shrinkage("oas")
    geometry = ot_lens.geometry
    geometry.diagnose(acts, **few)
    geometry.spectra(acts, bootstrap=4)
    geometry.massive_activations(acts, **few)
    geometry.diagnose(geometry.robust_samples(acts), **few)
    geometry.direction_cosines(acts, **few)
    geometry.class_angles(acts, **few)
    geometry.layer_angles(acts, **few)
    geometry.similarity(acts, **few)
    geometry.similarity(acts, acts, **few)
    geometry.map_quality(maps, acts, acts, **few)
    geometry.visibility(acts, acts, **few)
    geometry.principal_plane(acts.harmful(0), acts.harmless(0), {{"T": T}})
work(small)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = status("VmRSS")
work(acts)
{extra}
print(json.dumps({{"before": before, "after": status("VmHWM")}}))
"""


def peak_growth(d: int = D, extra: str = "") -> int:
    """Bytes by which the peak resident size grows while everything, and `extra`, runs once at width d."""
    command = [sys.executable, "-c", SCRIPT.format(root=str(ROOT), d=d, extra=extra)]
    printed = subprocess.check_output(command, text=True, cwd=ROOT)
    peaks = json.loads(printed.splitlines()[-1])
    return peaks["after"] - peaks["before"]


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


@pytest.mark.campaign
@pytest.mark.parametrize("how", ["store", "resumed", "opened", "moments"])
def test_memory_does_not_grow_with_the_number_of_prompts(peaks, how):
    more = (streaming.MANY - streaming.FEW) * streaming.BYTES
    assert peaks[how]["many"] - peaks[how]["few"] < more / 6
    if how in ("resumed", "opened"):
        assert peaks[how]["many"] < more / 20


@pytest.mark.campaign
def test_the_check_would_see_activations_in_memory(peaks):
    more = (streaming.MANY - streaming.FEW) * streaming.BYTES
    assert peaks["in memory"]["many"] - peaks["in memory"]["few"] > more / 2
