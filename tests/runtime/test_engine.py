"""Calling engines on the sim device: results against numpy, kinds of arrays, shapes, errors that name what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime_programs import SCALE_ADD, W, chain, chain_reference, check, rows, scale_add, tiles

from arcweld.compiler.errors import InputError
from arcweld.compiler.parameters import Integer
from arcweld.runtime.engine import Engine
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.program import SCHEMA, Alias, Program, Symbol, Tensor, WeightEntry
from arcweld.runtime.sim.device import SimDevice


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(chain(), SimDevice(checked=True))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_any_sequence_of_shapes_matches_numpy(sizes: list[int]) -> None:
    engine = Engine(chain(), SimDevice())
    for seed, n in enumerate(sizes):
        check(engine, rows(n, seed))


def test_results_are_never_overwritten(engine: Engine) -> None:
    first, _ = engine(rows(5, 1))
    kept = first.copy()
    engine(rows(5, 2))
    np.testing.assert_array_equal(first, kept)


def test_arguments_by_position_name_and_dict(engine: Engine) -> None:
    x = rows(3)
    by_position, by_name, by_dict = engine(x)[0], engine(x=x)[0], engine.run({"x": x})
    np.testing.assert_array_equal(by_position, by_name)
    np.testing.assert_array_equal(by_position, by_dict["y"])
    assert list(by_dict) == ["y", "total"]


@pytest.mark.parametrize("kind", ["strided", "read-only", "misaligned", "fortran", "memmap"])
def test_any_numpy_layout(engine: Engine, kind: str, tmp_path: Path) -> None:
    x = rows(6)
    if kind == "strided":
        array = np.repeat(x, 2, axis=0)[::2]
    elif kind == "read-only":
        array = x.copy()
        array.flags.writeable = False
    elif kind == "misaligned":
        array = np.empty(6 * 8 + 1, np.float32)[1:].reshape(6, 8)
        array[...] = x
    elif kind == "fortran":
        array = np.asfortranarray(x)
    else:
        np.save(tmp_path / "x.npy", x)
        array = np.load(tmp_path / "x.npy", mmap_mode="r")
    check(engine, array)


def test_torch_in_torch_out(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    x = rows(4)
    y, total = engine(torch.from_numpy(x))
    assert isinstance(y, torch.Tensor)
    assert y.dtype == torch.float32
    np.testing.assert_allclose(y.numpy(), chain_reference(x, W)[0], rtol=1e-5, atol=1e-5)
    transposed = torch.from_numpy(np.ascontiguousarray(x.T)).T.requires_grad_()
    np.testing.assert_array_equal(engine(transposed)[0].numpy(), y.numpy())
    assert total.shape == ()


def test_dlpack_in_numpy_out(engine: Engine) -> None:
    class Foreign:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: object) -> object:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    y, _ = engine(Foreign(rows(4)))
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, engine(rows(4))[0])


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((rows(2).astype(np.float64),), {}, "must be f32, got f64"),
        ((rows(2).astype(ml_dtypes.bfloat16),), {}, "must be f32, got bf16"),
        ((np.zeros((2, 8), "complex64"),), {}, "must be f32, got complex64"),
        ((rows(2)[0],), {}, r"must be f32\[n, 8\], got shape \[8\]: 1 dimensions instead of 2"),
        ((rows(2)[:, :7],), {}, r"got shape \[2, 7\]: dimension 1 is 7, not 8"),
        (([[1.0] * 8],), {}, "is a list, not an array"),
        ((), {}, "input 'x' is missing"),
        ((rows(2), rows(2)), {}, "2 inputs were given"),
        ((rows(2),), {"x": rows(2)}, "given twice"),
        ((), {"z": rows(2)}, "has no input 'z'"),
    ],
)
def test_wrong_inputs_name_expected_and_got(
    engine: Engine, args: tuple[object, ...], kwargs: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine(*args, **kwargs)


def test_wrong_torch_dtype_is_named(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="must be f32, got bf16"):
        engine(torch.zeros((2, 8), dtype=torch.bfloat16))


def test_a_size_outside_the_range_is_refused() -> None:
    """Kernels are simplified by the range: what they would compute outside is undefined."""
    engine = Engine(chain(), SimDevice())
    for n in (0, 4097):  # one of the outputs has elements without rows too
        with pytest.raises(InputError, match=f"dimension n is {n}; the engine serves 1 to 4096"):
            engine(rows(n))
    check(engine, rows(4096))


def two_inputs(**symbol: int) -> EngineData:
    program = Program(
        schema=SCHEMA,
        name="two",
        symbols=(Symbol("n", **symbol),),
        inputs=(Tensor("x", "f32", ("n",)), Tensor("z", "f32", ("n + 1",))),
        outputs=(Tensor("y", "f32", ("n",)),),
        weights=(),
        temps=(),
        aliases=(),
        launches=(scale_add("only", "x", "z", "y", 1.0, "n", "n"),),
    )
    return EngineData(program=program, sources={"scale_add": SCALE_ADD}, weights={})


def test_symbols_bind_across_inputs() -> None:
    engine = Engine(two_inputs(), SimDevice())
    x, z = np.arange(5, dtype=np.float32), np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(engine(x, z), x + z[:5])
    with pytest.raises(InputError, match=r"dimension 0 is 5, not 6 \(n \+ 1\)"):
        engine(x, z[:5])


def test_symbols_inside_expressions_are_solved() -> None:
    data = two_inputs()
    shapes = (Tensor("x", "f32", ("3*n + 2",)), Tensor("z", "f32", ("n",)))
    outputs = (Tensor("y", "f32", ("3*n + 2",)),)
    for inputs in (shapes, shapes[:1]):
        reads = shapes[1].name if len(inputs) == 2 else "x"
        launches = (scale_add("only", "x", reads, "y", 1.0, "3*n + 2", "n"),)
        program = msgspec.structs.replace(data.program, inputs=inputs, outputs=outputs, launches=launches)
        engine = Engine(replace(data, program=program), SimDevice())
        x = np.arange(14, dtype=np.float32)
        given = (x, np.arange(4, dtype=np.float32))[: len(inputs)]
        np.testing.assert_array_equal(engine(*given), x + np.arange(14) % 4)
        wrong = (x[:12], *given[1:])
        with pytest.raises(InputError, match=r"dimension 0 is 12, not"):
            engine(*wrong)


def test_multiples_are_required() -> None:
    engine = Engine(two_inputs(multiple_of=4), SimDevice())
    with pytest.raises(InputError, match="multiple of 4"):
        engine(np.zeros(5, np.float32), np.zeros(6, np.float32))


def test_outputs_that_are_inputs_weights_and_aliases() -> None:
    """An output may be an input or a weight under its own name, or a view of a temporary."""
    program = Program(
        schema=SCHEMA,
        name="views",
        symbols=(Symbol("n", 0),),
        inputs=(Tensor("x", "f32", ("n", "8")),),
        outputs=(
            Tensor("x", "f32", ("n", "8")),
            Tensor("w", "f32", ("8",)),
            Tensor("last", "f32", ("8",)),
            Tensor("again", "f32", ("8*n",)),
        ),
        weights=(WeightEntry("w", "f32", (8,)),),
        temps=(Tensor("t", "f32", ("n", "8")),),
        aliases=(Alias("last", "t", "32*n - 32"), Alias("again", "t")),
        launches=(scale_add("only", "x", "w", "t", 2.0, "8*n", "8"),),
    )
    engine = Engine(EngineData(program, {"scale_add": SCALE_ADD}, {"w": W}), SimDevice(checked=True))
    x = rows(3)
    same_x, same_w, last, again = engine(x)
    want = 2 * x + W
    np.testing.assert_array_equal(same_x, x)
    assert not np.shares_memory(same_x, x)
    np.testing.assert_array_equal(same_w, W)
    np.testing.assert_allclose(last, want[-1], rtol=1e-6)
    np.testing.assert_allclose(again, want.reshape(-1), rtol=1e-6)
    with pytest.raises(InputError, match="reaches outside"):
        engine(rows(0))


def test_a_launch_that_needs_too_much_is_refused() -> None:
    data = two_inputs()
    launch = data.program.launches[0]
    params = (*launch.variants[0].params[:4], Integer("n", "n*1000000000"), Integer("m", "n"))
    variant = msgspec.structs.replace(launch.variants[0], params=params)
    wide = msgspec.structs.replace(data.program, launches=(msgspec.structs.replace(launch, variants=(variant,)),))
    with pytest.raises(InputError, match="in 32 bits"):
        Engine(replace(data, program=wide), SimDevice())(np.zeros(5, np.float32), np.zeros(6, np.float32))
    variant = msgspec.structs.replace(launch.variants[0], grid=("1", "n*70000", "1"))
    high = msgspec.structs.replace(data.program, launches=(msgspec.structs.replace(launch, variants=(variant,)),))
    with pytest.raises(InputError, match="grid"):
        Engine(replace(data, program=high), SimDevice())(np.zeros(5, np.float32), np.zeros(6, np.float32))


def test_tensor_maps_follow_the_input() -> None:
    engine = Engine(tiles(), SimDevice(checked=True))
    for n in (8, 8, 29, 1):
        x = np.random.default_rng(n).standard_normal((n, 64)).astype(np.float32)
        np.testing.assert_array_equal(engine(x), x.T)


def test_no_inputs_and_no_launches() -> None:
    program = Program(
        SCHEMA, "constant", (), (), (Tensor("w", "f32", ("8",)),), (WeightEntry("w", "f32", (8,)),), (), (), ()
    )
    np.testing.assert_array_equal(Engine(EngineData(program, {}, {"w": W}), SimDevice())(), W)
