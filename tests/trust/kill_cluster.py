"""A cluster of this machine that outlives the drivers that are killed: prints its address, ends with stdin.

`python -m tests.trust.kill_cluster CPUS`
"""

import sys

from ot_lens.execution.ray_address import start_here

if __name__ == "__main__":
    ray = start_here(num_cpus=int(sys.argv[1]))
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()
