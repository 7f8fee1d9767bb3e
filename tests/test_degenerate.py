"""Thresholds of rank, spread and equality do not depend on the processor or on the scale of the samples."""

import os
import subprocess
import sys

import pytest
import torch

from ot_lens.linalg import Pooled
from tests.degenerate import CASES, CRITICAL, check

MKL = ("COMPATIBLE", "AVX2", "AVX512")
ATEN = ("default", "avx2", "avx512")
# Kernels above those of this processor end in an illegal instruction.
OWN = torch.backends.cpu.get_cpu_capability().lower()


@pytest.mark.filterwarnings("ignore::ot_lens.errors.PoorFitWarning")
@pytest.mark.parametrize("case", CASES[::5], ids=str)
def test_constant_classes_have_no_spread_at_any_scale_and_offset(case):
    check(*case)


@pytest.mark.filterwarnings("ignore::ot_lens.errors.PoorFitWarning")
@pytest.mark.parametrize("case", CRITICAL, ids=str)
def test_the_rounding_of_another_processor_changes_no_verdict(case, monkeypatch):
    exact = Pooled.gram

    def rounded(pooled):
        gram = exact(pooled)
        noise = torch.randn(gram.shape, generator=torch.Generator().manual_seed(0), dtype=gram.dtype)
        return gram + torch.finfo(gram.dtype).eps * gram.diagonal().amax() * (noise + noise.mT)

    monkeypatch.setattr(Pooled, "gram", rounded)
    check(*case)


def run(mkl: str, aten: str, cases: str) -> None:
    environment = {**os.environ, "MKL_CBWR": mkl, "ATEN_CPU_CAPABILITY": aten, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.degenerate", cases]
    finished = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]


def test_the_critical_cases_hold_with_the_plainest_kernels():
    run("COMPATIBLE", "default", "critical")


@pytest.mark.campaign
@pytest.mark.parametrize("mkl", MKL)
@pytest.mark.parametrize("aten", ATEN)
def test_every_case_holds_with_every_kernel(mkl, aten):
    if OWN in ATEN and ATEN.index(aten) > ATEN.index(OWN):
        pytest.skip(f"this processor has the kernels of {OWN}, and not those of {aten}")
    run(mkl, aten, "all")
