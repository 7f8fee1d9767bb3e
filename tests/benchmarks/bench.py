"""Speed, each as a ratio measured in one run; prints a table and writes runs/bench.json.

`make bench`, or `python tests/benchmarks/bench.py [--only WORD] [--out FILE]`.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks import page, speed, transport  # noqa: E402
from tests.benchmarks.measure import Row  # noqa: E402

BENCHES = [*transport.BENCHES, *speed.BENCHES, *page.BENCHES]


def main() -> None:
    """Run what was asked for; a missed bar is reported and is not a failure, since timings are noisy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run the benches whose name contains this word")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench.json")
    options = parser.parse_args()
    rows: list[Row] = []
    for bench in BENCHES:
        if options.only in bench.__name__:
            for row in bench():
                rows.append(row)
                print(row, flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_suffix(".tmp")
    temporary.write_text(json.dumps([row.to_dict() for row in rows], indent=1) + "\n")
    temporary.replace(options.out)
    missed = [row.name for row in rows if not row.meets]
    print(
        f"{len(rows) - len(missed)} of {len(rows)} bars met"
        + (f"; missed: {', '.join(missed)}" if missed else "")
    )


if __name__ == "__main__":
    main()
