"""Few rows by stored weights against numpy, on the checked simulator, and through NVRTC."""

from __future__ import annotations

import re
from dataclasses import replace

import cases_stored
import numpy as np
import pytest
from cases_stored import EVERY, Weights, literal, stored_kernel
from harness import assert_compiles, in_turn, run_kernel
from kernel_cases import Case, assert_close, matches
from mutate import survivors
from sim_harness import In, Out, image, run

from arcweld.codegen.nvrtc.compiler import compile_ptx
from arcweld.codegen.templates.contract.few_rows import MMA, STREAM, FewRows, FewRowsTactic
from arcweld.codegen.templates.contract.problem import problem_of
from arcweld.codegen.templates.contract.stored import stored_of
from arcweld.codegen.templates.select import implementations
from arcweld.compiler.dims import symbol
from arcweld.compiler.dtypes import PLANES, DType, integer_range, pack, unpack
from arcweld.compiler.expr import cast, const, load
from arcweld.runtime.sim.device import SimDevice

F16, BF16, F32 = DType.F16, DType.BF16, DType.F32
CASES = {c.id: c for c in cases_stored.cases()}
ENGINES = {"stream": STREAM, "mma": MMA}
INTEGERS = (DType.U4, DType.I4, DType.U8, DType.I8, DType.U2, DType.I2)


def best(case: Case, engine: FewRows) -> FewRowsTactic:
    return engine.tactics(problem_of(case.kernel), engine.ARCH)[0]


def close(case: Case, engine: FewRows, tactic: FewRowsTactic, seed: int = 0) -> bool:
    source = engine.render_problem(problem_of(case.kernel), tactic, engine.ARCH)
    got = run_kernel(source, case.kernel, case.inputs, case.env, seed=seed)
    return matches(case.kernel, got, cases_stored.expected(case))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES.values(), ids=lambda c: c.id)
def test_case_matches_numpy(case: Case, engine: str) -> None:
    few, problem = ENGINES[engine], problem_of(case.kernel)
    assert few.supports(problem, few.ARCH) is None
    source = few.render_problem(problem, best(case, few), few.ARCH)
    assert_close(case.kernel, run_kernel(source, case.kernel, case.inputs, case.env), cases_stored.expected(case))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [
    "many_groups", "ragged_1184", "i8_128_read", "open_7", "several_tiles_each", "prologue",
    *(("u1_above_ragged_640", "u2_above_open", "two_levels_3_768") if EVERY else ()),
])  # fmt: skip
def test_every_tactic_agrees(name: str, engine: str) -> None:
    case, few = CASES[name], ENGINES[engine]
    for tactic in few.tactics(problem_of(case.kernel), few.ARCH):
        least = 32 if few.streaming and not name.startswith(("u1_above", "u2_above", "two_levels")) else 128
        for t in (tactic, replace(tactic, resident=False, depth=least)):
            assert close(case, few, t, seed=1), t


# ---------------------------------------------------------------------------------------------------------- unpacking


def unpacked(dtype: DType, element: DType, zero: int) -> np.ndarray:
    """What ``unpack`` makes of all bytes in order, as the bits of 16-bit numbers."""
    per = 8 // dtype.bits
    lanes = 256 * per // 8
    minus = f"minus_zero<{element.value}, {dtype.value}>({zero})" if dtype in INTEGERS else "0u"
    source = f"""#include "prims.cuh"
#include "few_rows.cuh"
#include "stored.cuh"
struct Params {{ const u32* x; u32* y; }};
extern "C" __global__ void __launch_bounds__({lanes}) unpack_all(const __grid_constant__ Params p) {{
  const StoredWords<{dtype.value}> w =
      load_stored<{dtype.value}>(reinterpret_cast<const unsigned char*>(p.x), threadIdx.x / 4, threadIdx.x);
  store_vec<4>(p.y + threadIdx.x * 4, unpack<{element.value}, {dtype.value}>(w, {minus}));
}}
EXPORT_KERNEL(unpack_all)
"""
    everything = np.arange(256, dtype=np.uint8)
    y = Out(np.zeros(lanes * 4, np.uint32))
    arguments = [In(everything.view(np.uint32)), y]
    (got,) = run(SimDevice(checked=True), image(source, "unpack_all"), (1,), (lanes,), arguments)
    return got.view(np.uint16)


@pytest.mark.parametrize("element", [F16, BF16], ids=lambda d: d.value)
@pytest.mark.parametrize("dtype", [*INTEGERS, *cases_stored.FLOATS], ids=lambda d: d.value)
def test_all_bytes_unpack_exactly(dtype: DType, element: DType) -> None:
    """Against ml_dtypes, with every zero point of an integer type."""
    count = 256 * (8 // dtype.bits)
    q = unpack(np.arange(256, dtype=np.uint8), dtype, (count,))
    low, high = integer_range(dtype) if dtype in INTEGERS else (0, 0)
    for zero in range(low, high + 1, 1 if dtype.bits < 8 else 17):
        want = q.astype(np.float32) - np.float32(zero) if dtype in INTEGERS else q.astype(np.float32)
        got = unpacked(dtype, element, zero).view(element.numpy).astype(np.float32)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(np.signbit(got) & ~np.isnan(got), np.signbit(want) & ~np.isnan(want))


@pytest.mark.parametrize("element", [F16, BF16], ids=lambda d: d.value)
@pytest.mark.parametrize("high", PLANES, ids=lambda d: d.value)
def test_all_integers_in_two_planes_unpack_exactly(high: DType, element: DType) -> None:
    """Every integer at each of eight places, less the least, the middle and the largest zero point."""
    count, lanes = 16 << high.bits, 2 << high.bits  # of eight elements each
    numbers = np.concatenate([np.roll(np.arange(count), s) for s in range(8)]).astype(np.uint8)
    low, above = pack((numbers & 15).astype(DType.U4.numpy)), pack((numbers >> 4).astype(high.numpy))
    kind = f"Planes<u4, {high.value}>"
    for zero in (0, count // 2, count - 1):
        source = f"""#include "prims.cuh"
#include "few_rows.cuh"
#include "stored.cuh"
struct Params {{ const u32* low; const u32* high; u32* y; }};
extern "C" __global__ void __launch_bounds__({8 * lanes}) unpack_all(const __grid_constant__ Params p) {{
  const unsigned char* const low = reinterpret_cast<const unsigned char*>(p.low);
  const unsigned char* const high = reinterpret_cast<const unsigned char*>(p.high);
  const PlaneWords<{kind}> w = load_planes<{kind}>(low, high, threadIdx.x / 4, threadIdx.x);
  store_vec<4>(p.y + threadIdx.x * 4, unpack<{element.value}, {kind}>(w, minus_zero<{element.value}, {kind}>({zero})));
}}
EXPORT_KERNEL(unpack_all)
"""
        y = Out(np.zeros(lanes * 32, np.uint32))
        arguments = [In(low.view(np.uint32)), In(above.view(np.uint32)), y]
        (got,) = run(SimDevice(checked=True), image(source, "unpack_all"), (1,), (8 * lanes,), arguments)
        found = got.view(np.uint16).view(element.numpy).astype(np.float32)
        np.testing.assert_array_equal(found, numbers.astype(np.float32) - zero)


def test_upper_bits_that_bulk_copies_cannot_take() -> None:
    """Rows of one bit an element start on 16 bytes where k is a multiple of 128: else they are loaded to registers."""
    rng = np.random.default_rng(5)
    for high, k in ((DType.U1, 160), (DType.U1, 96), (DType.U2, 96), (DType.U2, 32)):
        weights = Weights(DType.U4, 32, "literal", F16, high)
        kernel = stored_kernel(3, 21, k, F16, weights)
        problem, inputs = problem_of(kernel), cases_stored.inputs_of(rng, kernel, weights, {})
        assert STREAM.supports(problem, STREAM.ARCH) == "b: upper bits not in aligned pieces of 16 bytes along k"
        assert MMA.supports(problem, MMA.ARCH) is None
        source = MMA.render_problem(problem, MMA.tactics(problem, MMA.ARCH)[0], MMA.ARCH)
        assert_close(kernel, run_kernel(source, kernel, inputs, {}), cases_stored.product(inputs, weights, False))


# --------------------------------------------------------------------------------------------------------- the kernels


@pytest.mark.parametrize(("engine", "name"), [
    ("stream", "long"), ("stream", "several_tiles_each"), ("mma", "long"), ("mma", "several_tiles_each"),
])  # fmt: skip
def test_every_wait_is_needed(engine: str, name: str) -> None:
    case, few = CASES[name], ENGINES[engine]
    # so small that stages are filled again, and blocks take several tiles
    tactic = replace(best(case, few), split=8, depth=32 if few.streaming else 128, stages=2 if few.streaming else 0)
    source = few.render_problem(problem_of(case.kernel), tactic, few.ARCH)

    def passes(text: str) -> bool:
        got = run_kernel(source, case.kernel, case.inputs, case.env, text=text)
        return matches(case.kernel, got, cases_stored.expected(case))

    assert passes(source.source)
    unnoticed = [m.deleted for m in survivors(source.source, passes)]
    # the fence orders mbar_init before the copies: the simulator has no proxies
    assert unnoticed == (["fence_proxy_async();"] if few.streaming else [])


@pytest.mark.parametrize("case", [*CASES.values()][::4], ids=lambda c: c.id)
def test_case_compiles(case: Case) -> None:
    for few in ENGINES.values():
        assert_compiles(few.render_problem(problem_of(case.kernel), best(case, few), few.ARCH))


WEIGHTS = (
    Weights(DType.U4, 32, "read"), Weights(DType.I4, 128), Weights(DType.U8, 32, "read", F16), Weights(DType.F8E4M3FN),
    *([
        Weights(DType.U4, 32, "literal", F16, DType.U1), Weights(DType.U4, 32, "literal", F16, DType.U2),
        Weights(DType.U4, 16, "literal", DType.I8, DType.U2, 256),
    ] if EVERY else []),
)  # fmt: skip
ROWS = (1, 8, 16)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("weights", WEIGHTS, ids=cases_stored.name_of)
def test_every_tactic_compiles_without_spills(weights: Weights, rows: int, engine: str) -> None:
    """Each tactic with each of the weights and each number of rows, in one of the types."""
    few = ENGINES[engine]
    for k, dtype in enumerate((F16, BF16)):
        problem = problem_of(stored_kernel(rows, 4096, 14336, dtype, weights))
        turn = WEIGHTS.index(weights) + ROWS.index(rows) + k
        for tactic in in_turn(few.tactics(problem, few.ARCH), turn, 2):
            assert_compiles(few.render_problem(problem, tactic, few.ARCH))


@pytest.mark.parametrize("dtype", [F16, BF16], ids=lambda d: d.value)
def test_nibbles_are_unpacked_by_permutations_and_logic(dtype: DType) -> None:
    """Two numbers take a permutation, one logic operation and one multiply-add; no integer is converted."""
    case = stored_kernel(1, 4096, 4096, dtype, Weights(DType.U4, 32, "read", F16))
    problem = problem_of(case)
    tactic = STREAM.tactics(problem, STREAM.ARCH)[0]
    source = STREAM.render_problem(problem, tactic, STREAM.ARCH)
    text = compile_ptx(source.source, "sm_90a", name=source.entry).decode()
    pairs = tactic.columns * tactic.depth // 64  # of a lane's numbers in a step
    assert len(re.findall(r"\blop3\.b32", text)) == len(re.findall(rf"\bfma\.rn\.{dtype.value}x2", text)) == pairs
    assert len(re.findall(r"\bprmt\.b32", text)) >= pairs
    assert "mma.sync" in text
    assert not re.search(r"cvt\.rn\.f\d+\.[su]\d+", text)


# ------------------------------------------------------------------------------------------------------ what is served


@pytest.mark.parametrize("weights", [Weights(DType.U4, 32, "read"), Weights(DType.I8, 0), Weights(DType.F8E5M2, 128)])
def test_scales_are_requested_before_the_kernel_waits_for_its_predecessor(weights: Weights) -> None:
    for few in ENGINES.values():
        for weight in (False, True):
            problem = problem_of(stored_kernel(3, 5000, 128, F16, weights, weight=weight))
            text = few.render_problem(problem, few.tactics(problem, few.ARCH)[0], few.ARCH).source
            request = text.index("  request_scales();" if few.streaming else "  request();")
            assert (request < text.index("pdl_wait();")) == weight


def test_which_implementation_serves_what() -> None:
    def names(arch: str, rows: int, dtype: DType = F16, weights: Weights | None = None) -> list[str]:
        kernel = stored_kernel(rows, 64, 128, dtype, weights or Weights(DType.U4, 32))
        return [i.name for i in implementations(kernel, arch)]

    assert names("sm_90a", 1)[:3] == ["gemv_stream", "gemv_mma", "gemv"]
    assert names("sm_80", 1)[:2] == ["gemv_mma", "gemv"]
    assert names("sm_80", 16, BF16)[:2] == ["gemv_mma", "mma"]
    assert names("sm_90a", 4, weights=Weights(DType.U4, 8))[0] == "gemv"
    assert names("sm_90a", 4, weights=Weights(DType.U4, 16, "read"))[0] == "gemv"
    assert names("sm_90a", 4, weights=Weights(DType.U4, 16))[0] == "gemv_stream"
    assert names("sm_90a", 4, weights=Weights(DType.F8E4M3FNUZ, 32))[0] == "gemv"
    for high in PLANES:
        assert names("sm_90a", 1, weights=Weights(DType.U4, 32, "none", F16, high))[:2] == ["gemv_stream", "gemv_mma"]
    few = stored_kernel(symbol("M", 0, 16), 64, 128, F16, Weights(DType.I8, 64))
    assert implementations(few, "sm_90a")[0].name == "gemv_stream"


@pytest.mark.parametrize("weights", [
    Weights(DType.I8), Weights(DType.U4), Weights(DType.U4, 16, "literal", DType.I8, DType.U2, 256),
])  # fmt: skip
def test_ordinary_arithmetic_reads_along_the_elements(weights: Weights) -> None:
    """Scales of one column, or of one block of 256, are neighbours in n: there are fewer of them than elements."""
    b = problem_of(stored_kernel(1, 64, 256, F16, weights)).b
    assert (b.along_k, b.width) == (True, 8)


@pytest.mark.parametrize("weights", [
    Weights(DType.U4, 32), Weights(DType.I4, 64), Weights(DType.U8, 1024), Weights(DType.I8),
])  # fmt: skip
def test_groups_are_found(weights: Weights) -> None:
    """Several groups may share one scale: those of 512 do where it is that of 1024."""
    found = stored_of(problem_of(stored_kernel(2, 64, 4096, F16, weights)))
    assert found is not None
    assert found.group == (min(weights.group, 512) or None)
    assert found.dtype is weights.dtype


def test_other_forms_are_left_to_ordinary_arithmetic() -> None:
    """Zero points that are no number of q's type, q that is masked, and pieces that are not aligned."""
    kernel = stored_kernel(2, 64, 128, F16, Weights(DType.U4, 32, "literal"))
    assert stored_of(problem_of(kernel)) is not None
    b = kernel.loads["b"]
    q = load("in1", DType.U4, b.args[0].args[0].args[0].args[0].attr[2])
    masked = load("in1", DType.U4, q.attr[2], const(True, DType.BOOL))
    for number in (cast(q, DType.I32) - 16, cast(masked, DType.I32) - literal(DType.U4), cast(q, F32) - 0.5):
        other = replace(kernel, loads={**kernel.loads, "b": cast(number, F32) * b.args[1]})
        assert stored_of(problem_of(other)) is None
    direct = replace(kernel, loads={**kernel.loads, "b": cast(q, F32) * b.args[1]})
    assert stored_of(problem_of(direct)) is not None
    assert "not f16 in aligned pieces" in (STREAM.supports(problem_of(other), "sm_90a") or "")
    assert stored_of(problem_of(stored_kernel(2, 64, 80, F16, Weights(DType.U4)))) is None
