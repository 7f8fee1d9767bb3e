"""Peak memory at a width where a single d x d matrix would be seen."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.measure import Row, within

D = 16384
ROOT = Path(__file__).resolve().parents[2]

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
    for method in transport.METHODS:
        maps = transport.fit_all(acts, method)
        moved = maps[0].map(acts.harmful(0))
    T = transport.fit_gaussian_ot(acts.harmful(0), acts.harmless(0))
    T.inverse().compose(T).at(0.5).map(moved)
    transport.fit_entropic_ot(acts.harmful(0), acts.harmless(0)).map(moved)
    transport.restrict_to_support(maps[0].__class__.identity(acts.source.shape[-1]), acts.harmful(0))
    ot_lens.gaussian.bures_wasserstein(acts.harmful(0), acts.harmless(0), shrinkage="oas")
    shards = [ot_lens.moments.Moments.of(part) for part in acts.harmful(0).split(5)]
    ot_lens.moments.merge_all(shards).shrinkage("oas")
    geometry = ot_lens.geometry
    geometry.diagnose(acts, **few)
    geometry.spectra(acts, bootstrap=4)
    geometry.direction_cosines(acts, **few)
    geometry.class_angles(acts, **few)
    geometry.layer_angles(acts, **few)
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


def peak_memory() -> Iterator[Row]:
    start = time.perf_counter()
    grown, square = peak_growth(), 8 * D * D
    took = time.perf_counter() - start
    floor, sizes = "one d x d float64 matrix, GiB not s", {"d": D, "n": "24 + 24", "took_s": round(took)}
    yield within("peak memory", grown / 2**30, floor, square / 2**30, 0.5, **sizes)


BENCHES = (peak_memory,)
