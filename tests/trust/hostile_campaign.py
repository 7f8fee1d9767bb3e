"""A campaign of hostile files in a process of its own, whose memory is limited: prints one JSON object.

python -m tests.trust.hostile_campaign --cases 5000 [--seed 0] [--reader NAME] [--case NUMBER]
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from tests.trust import hostile_cases as cases
from tests.trust.hostile_oracle import Tally, Watch, alarms, judged, limit_memory, peak_memory
from tests.trust.hostile_readers import Files, Reader, all_readers, models


class Campaign:
    """All cases of the readers, one after the other, in a sandbox."""

    def __init__(self, sandbox: Path, first: int) -> None:
        self.sandbox, self.seed = sandbox, first
        self.watch, self.canary = Watch(), sandbox / "canary"
        self.folder = sandbox / "inside"

    def warm(self, reader: Reader) -> None:
        """Read the valid files: what is imported late is none of a case's doing."""
        self._lay_out(reader.files)
        reader.read(self.folder)

    def run(self, reader: Reader, n: int) -> Tally:
        """n cases of a reader, beside those of odd kinds of files."""
        tally, began = Tally(), time.process_time()
        self._lay_out(reader.files)
        outcome, fault = judged(lambda: reader.read(self.folder), self.watch, self.canary)
        if fault or outcome != "read":
            tally.fail("the valid files", f"{outcome}: {fault}")
        self._kinds(reader, tally)
        by_structure = n // 2 if reader.structures is not None else 0
        self._mutations(reader, n - by_structure, tally)
        if by_structure:
            self._structures(reader, by_structure, tally)
        tally.seconds = time.process_time() - began
        print(f"{reader.name}: {tally.cases} cases, {tally.seconds:.1f} s", file=sys.stderr, flush=True)
        return tally

    def _lay_out(self, files: Files) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def _judge(self, reader: Reader, name: str, tally: Tally) -> None:
        began = time.perf_counter()
        outcome, fault = judged(lambda: reader.read(self.folder), self.watch, self.canary)
        tally.slowest = max(tally.slowest, time.perf_counter() - began)
        tally.cases += 1
        tally.outcomes[outcome] += 1
        if fault is not None:
            tally.fail(f"{reader.name} {name}", fault)

    def _kinds(self, reader: Reader, tally: Tally) -> None:
        for target in reader.hostile:
            for kind, make in cases.KINDS.items():
                path = self.folder / target
                cases.remove(path)
                make(path)
                self._judge(reader, f"{target} {kind}", tally)
                cases.remove(path)
                path.write_bytes(reader.files[target])

    def _mutations(self, reader: Reader, n: int, tally: Tally) -> None:
        others = list(reader.files.values())
        for i in range(n):
            draw = random.Random(f"{reader.name}:{self.seed}:{i}")
            target = reader.hostile[i % len(reader.hostile)]
            path = self.folder / target
            path.write_bytes(cases.mutated(reader.files[target], others, draw))
            self._judge(reader, f"mutation {i}", tally)
            path.write_bytes(reader.files[target])

    def _structures(self, reader: Reader, n: int, tally: Tally) -> None:
        @seed(self.seed)
        @settings(
            max_examples=n, database=None, deadline=None, phases=[Phase.generate], verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(reader.structures)
        def each(files: Files) -> None:
            for name, content in files.items():
                (self.folder / name).write_bytes(content)
            self._judge(reader, f"structure {tally.cases}", tally)
            for name in files:
                (self.folder / name).write_bytes(reader.files[name])

        each()


def _snapshot(folder: Path, without: Path) -> dict[str, tuple[int, int]]:
    outside = (path for path in folder.rglob("*") if not path.is_relative_to(without))
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in outside}


def main() -> None:
    """Run the campaign that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", default="")
    parser.add_argument("--part", default="0/1", help="this of so many parts of the readers")
    parser.add_argument("--models", action="store_true", help="model folders, and nothing else")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    part, parts = map(int, asked.part.split("/"))
    readers = models() if asked.models else all_readers()
    readers = [r for r in readers if asked.reader in r.name]
    whole = sum(r.weight for r in readers)
    readers = readers[part::parts]
    room = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=room) as place, alarms():
        campaign = Campaign(Path(place), asked.seed)
        (Path(place) / "outside.txt").write_text("untouched")
        for reader in readers:
            campaign.warm(reader)
        before, memory = _snapshot(Path(place), campaign.folder), peak_memory()
        limit_memory()
        found = {r.name: campaign.run(r, round(asked.cases * r.weight / whole)) for r in readers}
        grown = peak_memory() - memory
        untouched = _snapshot(Path(place), campaign.folder) == before
    report = {name: {**vars(tally), "outcomes": dict(tally.outcomes)} for name, tally in found.items()}
    print(json.dumps({"readers": report, "grown": grown, "untouched": untouched}))


if __name__ == "__main__":
    main()
