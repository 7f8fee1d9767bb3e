"""One row of the bench: ours against a peer or a floor, both timed in this run."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """`ratio` is peer / ours for a bar that starts with >=, ours / peer for one with <=."""

    name: str
    ours_s: float
    peer: str
    peer_s: float
    ratio: float
    bar: str
    meets: bool
    sizes: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        verdict = "ok    " if self.meets else "MISSED"
        sizes = ", ".join(f"{name} = {value}" for name, value in self.sizes.items())
        return (
            f"{verdict} {self.name}: {self.ours_s:.3g} s, {self.peer} {self.peer_s:.3g} s, "
            f"ratio {self.ratio:.3g} (bar {self.bar}); {sizes}"
        )


def faster(
    name: str, ours: float, peer: str, theirs: float, bar: float, sound: bool = True, **sizes: Any
) -> Row:
    """At least `bar` times faster than the peer, and right."""
    ratio = theirs / ours
    return Row(name, ours, peer, theirs, ratio, f">= {bar:g}", bool(ratio >= bar and sound), sizes)


def within(
    name: str, ours: float, floor: str, theirs: float, bar: float, sound: bool = True, **sizes: Any
) -> Row:
    """At most `bar` times the floor, and right."""
    ratio = ours / theirs
    return Row(name, ours, floor, theirs, ratio, f"<= {bar:g}", bool(ratio <= bar and sound), sizes)


def seconds(run: Callable[[], Any], repeats: int = 3, warm: bool = True) -> float:
    """Best wall-clock time: what else the machine does can only add to it."""
    if warm:
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_memory(run: Callable[[], Any]) -> float:
    """The most memory of this process while something runs, in MiB; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except OSError:
        run()
        return float("nan")
    run()
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """Best wall-clock times of two things run in turn, so that what else the machine does hits both."""
    ours()
    theirs()
    turns = [(seconds(ours, 1, warm=False), seconds(theirs, 1, warm=False)) for _ in range(repeats)]
    return min(mine for mine, _ in turns), min(other for _, other in turns)
