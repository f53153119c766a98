"""What the simulator's runtime does for blocks that run in one go, against numpy."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from sim_harness import In, Out, image, run, source_of

from arcweld.runtime.device import KernelImage
from arcweld.runtime.sim.build import runtime_library
from arcweld.runtime.sim.device import ADVERSE_SEED, SimDevice

TYPES = {"f32": np.float32, "f64": np.float64, "i32": np.int32, "i64": np.int64, "u32": np.uint32}
# more than a full strip, a full one, every narrower width and single elements; rows of 8, of 4 and left over
ROWS, COLUMNS, DEPTHS = (1, 5, 8, 15), (1, 3, 8, 31, 32, 70), (0, 1, 9)


@pytest.fixture(params=["usual", "avx512"])
def vectors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both widths of vectors that the runtime has."""
    uses_avx512 = ctypes.c_bool.in_dll(ctypes.CDLL(str(runtime_library())), "sim_uses_avx512")
    found = uses_avx512.value
    if request.param == "avx512" and not found:
        pytest.skip("this CPU has no AVX-512")
    uses_avx512.value = request.param == "avx512"
    yield
    uses_avx512.value = found


def kernel(entry: str, name: str = "f32") -> KernelImage:
    return image(source_of("products.cu.j2", type=name), entry)


def numbers(generator: np.random.Generator, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        return generator.integers(info.min, info.max, shape, dtype, endpoint=True)
    return generator.standard_normal(shape).astype(dtype)


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize("along_k", [True, False])
@pytest.mark.parametrize("name", TYPES)
def test_products_are_numpys(name: str, along_k: bool) -> None:
    dtype, generator, device, compiled = TYPES[name], np.random.default_rng(3), SimDevice(), kernel("multiply", name)
    for rows, columns, depth in itertools.product(ROWS, COLUMNS, DEPTHS):
        a = numbers(generator, dtype, (rows, depth + 3))
        b, c = numbers(generator, dtype, (depth, columns + 2)), numbers(generator, dtype, (rows, columns + 1))
        stored = a if along_k else np.ascontiguousarray(a.T)
        steps = (a.shape[1], 1) if along_k else (1, rows)
        sizes = (columns + 1, *steps, columns + 2, rows, columns, depth)
        (got,) = run(device, compiled, (1,), (1,), [Out(c), In(stored), In(b), *sizes])
        want = c.copy()
        left, right = a[:, :depth], b[:, :columns]
        if np.issubdtype(dtype, np.integer):  # modulo a power of two, as numpy's
            want[:, :columns] += left @ right
            np.testing.assert_array_equal(got, want)
            continue
        wide = np.float64 if dtype is np.float32 else np.longdouble
        want[:, :columns] = want[:, :columns] + left.astype(wide) @ right.astype(wide)
        size = np.abs(c).max() + np.abs(left).sum(1).max(initial=0) * np.abs(right).max(initial=0)
        np.testing.assert_allclose(got, want, rtol=0, atol=float((depth + 1) * np.finfo(dtype).eps * size))
        np.testing.assert_array_equal(got[:, columns], c[:, columns])


@pytest.mark.usefixtures("vectors")
@pytest.mark.parametrize("name", ["f32", "f64"])
def test_product_and_sum_are_rounded_once(name: str) -> None:
    """(1 + e)² - (1 + 2e) is e² only in a fused multiply-add, whatever the widths of vectors."""
    dtype = TYPES[name]
    e = float(np.finfo(dtype).eps)
    for rows, columns in itertools.product(ROWS, COLUMNS):
        c, a = np.full((rows, columns), -(1 + 2 * e), dtype), np.full((rows, 1), 1 + e, dtype)
        b = np.full((1, columns), 1 + e, dtype)
        arguments = [Out(c), In(a), In(b), columns, 1, 1, columns, rows, columns, 1]
        (got,) = run(SimDevice(), kernel("multiply", name), (1,), (1,), arguments)
        np.testing.assert_array_equal(got, np.full_like(c, e * e))


@pytest.mark.parametrize("name", ["f32", "f64"])
def test_transposes_are_numpys(name: str) -> None:
    generator = np.random.default_rng(4)
    for rows, columns in itertools.product((1, 4, 7, 12), (1, 4, 6, 16)):
        a = numbers(generator, TYPES[name], (rows, columns + 1))
        to = np.zeros((columns, rows + 2), a.dtype)
        arguments = [Out(to), In(a), rows + 2, columns + 1, rows, columns]
        (got,) = run(SimDevice(), kernel("transpose", name), (1,), (1,), arguments)
        np.testing.assert_array_equal(got[:, :rows], a[:, :columns].T)
        assert not got[:, rows:].any()


def test_one_thread_takes_a_block_and_finds_what_the_last_one_left() -> None:
    keys = np.array([7, 7, 8, 7, 7], np.int32)
    zeros = np.zeros_like(keys)
    for _ in range(2):  # a launch finds nothing of the one before
        ran, found = run(SimDevice(), kernel("blocks"), (5,), (64,), [Out(zeros), Out(zeros), In(keys)])
        np.testing.assert_array_equal(ran, [101] * 5)
        np.testing.assert_array_equal(found, [-1, 7, -1, -1, 7])


def test_an_adverse_schedule_takes_no_block() -> None:
    zeros = np.zeros(3, np.int32)
    device = SimDevice(seed=ADVERSE_SEED)
    ran, found = run(device, kernel("blocks"), (3,), (32,), [Out(zeros), Out(zeros), In(zeros)])
    np.testing.assert_array_equal(ran, [32] * 3)
    np.testing.assert_array_equal(found, zeros)
