"""The simulator on CPUs other than this one: runtime and kernels are compiled for them, run, and compared with numpy.

aarch64 Linux runs under qemu (Debian and Ubuntu: ``apt-get install g++-aarch64-linux-gnu qemu-user``), x86-64 without
AVX as it is. Each launch is a process (``driver.c``).
"""

from __future__ import annotations

import os
from types import ModuleType

import cases_attention
import cases_contract
import numpy as np
import pytest
from demo_kernels import DEMOS
from function_cases import MOST, NAMES, errors
from harness import render_with, run_kernel
from kernel_cases import assert_close
from other_machine import Machine, OtherDevice, aarch64, old_x86_64
from prim_cases import PrimCase
from sim_harness import In, Out, image, run
from test_prims_sim import CASES

from arcweld.codegen.templates.select import select
from arcweld.compiler.errors import DeviceError

pytestmark = pytest.mark.slow
EVERY = "ARCWELD_EVERY" in os.environ  # all primitives in all modes take some minutes
CHOSEN = {
    "half_to_f32", "f32_to_half", "convert_integers", "approximate_math", "fma_pairs_f16", "shuffles", "mma_f16_2x3",
    "mma_bf16_2x3", "mma_tf32", "mma_i8_u8_2x3", "mma_f8e4m3fn_f8e5m2_2x3", "atomic_adds", "reductions",
    "multiply_adds", "cp_async_16", "named_barriers", "mbarriers", "tma_load_4d_strided", "tma_store_3d",
    "wgmma_i8_u8_n32", "wgmma_rs_bf16_n64_transposed", "wgmma_f8e5m2_f8e4m3fn_n64",
}  # fmt: skip


@pytest.fixture(params=["aarch64", "x86_64"])
def machine(request: pytest.FixtureRequest) -> Machine:
    found = aarch64() if request.param == "aarch64" else old_x86_64("")
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.mark.parametrize("case", [c for c in CASES if EVERY or c.name in CHOSEN], ids=lambda case: case.name)
def test_primitive_matches_numpy(case: PrimCase, machine: Machine) -> None:
    case.check(case.run(OtherDevice(machine)), case.reference)
    if EVERY:
        case.check(case.run(OtherDevice(machine, checked=True, seed=3)), case.reference)


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_rounded_once(name: str, machine: Machine) -> None:
    assert errors(OtherDevice(machine), name).max() <= MOST


@pytest.mark.parametrize("name", DEMOS if EVERY else ["gelu", "layernorm", "mma_gemm", "flash", "wgmma"])
@pytest.mark.parametrize("checked", [False, True], ids=["fast", "checked"])
def test_whole_kernel_matches_numpy(name: str, checked: bool, machine: Machine) -> None:
    demo = DEMOS[name]()
    for seed in (0, 77):
        assert demo.error(OtherDevice(machine, checked=checked, seed=seed)) <= demo.tolerance, f"seed {seed}"


@pytest.mark.parametrize(("suite", "name"), [(cases_contract, "fp32_large_tile"), (cases_attention, "causal")])
def test_forms_of_a_block_match_numpy(suite: ModuleType, name: str, machine: Machine) -> None:
    case = next(c for c in suite.cases() if c.id == name)
    source = render_with(case.kernel, case.tactic) if case.tactic else select(case.kernel, "sm_80")
    assert "if (block_" in source.source
    got = run_kernel(source, case.kernel, case.inputs, case.env, device=OtherDevice(machine, "sm_80"))
    assert_close(case.kernel, got, suite.expected(case), 20)


KERNEL = """#include "prims.cuh"
struct Params { const f32* x; f32* y; };
extern "C" __global__ void k(const __grid_constant__ Params p) {
  DYN_SHARED(f32, s);
  const int t = threadIdx.x;
  s[t] = p.x[t];
  BODY
}
EXPORT_KERNEL(k)
"""
MISUSE = [
    ("p.y[t] = s[t / 2];", True, r"shared-memory race \(read after write\)"),
    ("p.y[t + 1] = s[t];", True, "out of bounds"),
    ("p.y[t + 40000] = s[t];", False, "invalid or misaligned memory access"),
    ("p.y[t] = (f32)(64 / (int)p.x[0]);", True, "integer division by zero"),
    ("p.y[t] = (f32)(64 % (unsigned)p.x[0]);", False, "integer division by zero"),
    ("if (t == 5) __trap();", False, r"thread \(5,0,0\).*__trap"),
    ("if (t) __syncthreads();", False, "deadlock"),
]


@pytest.mark.parametrize(("body", "checked", "message"), MISUSE)
def test_misuse_is_refused(body: str, checked: bool, message: str, machine: Machine) -> None:
    kernel, x = image(KERNEL.replace("BODY", body), "k"), np.zeros(32, np.float32)
    with pytest.raises(DeviceError, match=f"(?s){message}"):
        run(OtherDevice(machine, checked=checked), kernel, (1,), (32,), [In(x), Out(x)], 128)


def test_char_is_signed_as_in_cuda(machine: Machine) -> None:
    kernel = image(KERNEL.replace("BODY", "const char c = (char)s[t]; p.y[t] = (f32)c;"), "k")
    (y,) = run(OtherDevice(machine), kernel, (1,), (1,), [In(np.float32([-3])), Out(np.float32([0]))], 4)
    assert y == -3
