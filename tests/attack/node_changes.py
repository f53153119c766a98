"""Changes each operand and attribute of a model's nodes in turn, to what ONNX's checker lets pass and handlers meet.

Random alterations reach one node in ten thousand of them. Here every operator meets every rank, type and number.
"""

from __future__ import annotations

import signal
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper
from targets import node_tests, with_constants

from arcweld.compiler.errors import ArcweldError, InternalError
from arcweld.driver.api import import_model

Array = np.ndarray
Change = Callable[[ModelProto], None]
TYPES = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT64,
    TensorProto.INT32, TensorProto.UINT8, TensorProto.INT8, TensorProto.BOOL, TensorProto.STRING, TensorProto.INT4,
    TensorProto.FLOAT8E4M3FN,
)  # fmt: skip
INTEGERS = (0, -1, 1, 2, 7, 16, 1 << 31, (1 << 63) - 1, -(1 << 63))
FLOATS = (0.0, -1.0, 0.5, 1e30, float("inf"), float("nan"))
OTHER_RANKS = range(7)
SECONDS = 20  # for one change
BUILT = 24  # one change in so many is built, not only imported


@cache
def originals(folder: Path) -> tuple[bytes, ...]:
    """ONNX's node tests, one of each form of nodes and inputs, with the test's inputs as defaults."""
    found: dict[str, bytes] = {}
    for test in node_tests():
        if "_expanded" not in test.name:
            found.setdefault(_form(test.model), with_constants(test.model, test.data_sets[0][0]))
    return tuple(found.values())


def _form(model: ModelProto) -> str:
    nodes = [
        (n.domain, n.op_type, len(n.input), len(n.output), sorted((a.name, a.type) for a in n.attribute))
        for n in model.graph.node
    ]
    types = [i.type.tensor_type for i in model.graph.input]
    return repr((nodes, [(t.elem_type, len(t.shape.dim)) for t in types]))


# -------------------------------------------------------------------------------------------------------- changes


def changes(model: ModelProto) -> Iterator[tuple[str, Change]]:
    """What can be changed, with a label: ``node.place=what``."""
    for k, node in enumerate(model.graph.node):
        for i, name in enumerate(node.input):
            for label, change in _of_operand(model, name) if name and name not in node.input[:i] else ():
                yield f"{k}.in{i}{label}", change
            for label, change in _of_wiring(k, i, node.input):
                yield f"{k}.in{i}{label}", change
        for i in range(len(node.output)):
            yield f"{k}.out{i} none", partial(_no_output, k=k, i=i)
        yield f"{k}.out more", lambda m, k=k: m.graph.node[k].output.append("more")
        for attr in _attributes(node):
            for label, new in _of_attribute(attr):
                yield f"{k}.{attr.name}{label}", partial(_set_attribute, k=k, name=attr.name, new=new)


def changed(model: ModelProto, change: Change) -> bytes:
    """The model after a change; what its outputs should be is forgotten."""
    copy = ModelProto.FromString(model.SerializeToString())
    for output in copy.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    change(copy)
    return bytes(copy.SerializeToString())


def _of_operand(model: ModelProto, name: str) -> Iterator[tuple[str, Change]]:
    """Other ranks, dimensions and types, as an open input and as a constant; other numbers of a constant."""
    given = next((numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name), None)
    info = next((i.type.tensor_type for i in model.graph.input if i.name == name), None)
    if given is None or (info is not None and info.elem_type == 0):
        return
    code = helper.np_dtype_to_tensor_dtype(given.dtype) if info is None else info.elem_type
    shape = list(given.shape)
    yield " open", partial(_open, name=name, code=code, shape=shape)
    yield " constant", partial(_constant, name=name, array=given)
    others = [[*shape, 1, 2, 1, 2, 1, 2][:r] for r in OTHER_RANKS if r != len(shape)]
    others += [[*shape[:a], d, *shape[a + 1 :]] for a, n in enumerate(shape) for d in {0, 1, n + 1} - {n}]
    for other in others:
        yield f" open {other}", partial(_open, name=name, code=code, shape=other)
        array = np.resize(given, other) if given.size else np.zeros(other, given.dtype)
        yield f" constant {other}", partial(_constant, name=name, array=array)
    for a in range(len(shape)):
        yield f" open axis {a}", partial(_open, name=name, code=code, shape=[*shape[:a], "N", *shape[a + 1 :]])
    for other_code in TYPES:
        if other_code != code:
            yield f" type {other_code}", partial(_open, name=name, code=other_code, shape=shape)
    for label, array in _other_numbers(given):
        yield f" constant {label}", partial(_constant, name=name, array=array)


def _other_numbers(given: Array) -> Iterator[tuple[str, Array]]:
    if given.dtype != object:
        for kind in ("f4", "f2", "i8", "i4", "u1", "?"):
            with np.errstate(all="ignore"):
                cast = given.astype(kind)
            yield f"of {kind}", cast
    yield "of texts", np.full(given.shape, "a", object)
    for number in FLOATS:
        yield f"of f4 {number}", np.full(given.shape, number, np.float32)
    if given.dtype.kind not in "iuf":
        return
    limits = None if given.dtype.kind == "f" else np.iinfo(given.dtype)
    for number in FLOATS if limits is None else INTEGERS:
        if limits is None or limits.min <= number <= limits.max:
            first = given.copy()
            first.reshape(-1)[:1] = number
            yield f"first {number}", first
            yield f"all {number}", np.full_like(given, number)


def _open(model: ModelProto, *, name: str, code: int, shape: Sequence[int | str]) -> None:
    _forget(model, name)
    model.graph.input.append(helper.make_tensor_value_info(name, code, shape))


def _constant(model: ModelProto, *, name: str, array: Array) -> None:
    _forget(model, name)
    model.graph.initializer.append(numpy_helper.from_array(array, name))


def _forget(model: ModelProto, name: str) -> None:
    for values in (model.graph.input, model.graph.initializer):
        for value in [v for v in values if v.name == name]:
            values.remove(value)


def _of_wiring(k: int, i: int, names: Sequence[str]) -> Iterator[tuple[str, Change]]:
    """The operand left out, taken away, given once more, or another's value in its stead."""
    yield " none", lambda m: m.graph.node[k].input.__setitem__(i, "")
    yield " away", lambda m: m.graph.node[k].input.__delitem__(i)
    yield " again", lambda m: m.graph.node[k].input.append(names[i])
    for other in dict.fromkeys(n for n in names if n and n != names[i]):
        yield f" = {other}", lambda m, other=other: m.graph.node[k].input.__setitem__(i, other)


def _no_output(model: ModelProto, *, k: int, i: int) -> None:
    name = model.graph.node[k].output[i]
    model.graph.node[k].output[i] = ""
    if len(model.graph.output) > 1:
        for output in [o for o in model.graph.output if o.name == name]:
            model.graph.output.remove(output)


# ----------------------------------------------------------------------------------------------------- attributes


def _attributes(node: onnx.NodeProto) -> list[AttributeProto]:
    """The node's attributes, and an empty one for each that it could have."""
    own = list(node.attribute)
    if onnx.defs.has(node.op_type, domain=node.domain):
        known = onnx.defs.get_schema(node.op_type, domain=node.domain).attributes
        missing = known.keys() - {a.name for a in own}
        own += [AttributeProto(name=n, type=int(known[n].type.value)) for n in sorted(missing)]
    return own


_KINDS: Mapping[int, tuple[str, Any]] = {
    AttributeProto.INT: ("i", 1), AttributeProto.FLOAT: ("f", 1.0), AttributeProto.STRING: ("s", b"x"),
    AttributeProto.INTS: ("ints", [1]), AttributeProto.FLOATS: ("floats", [1.0]),
    AttributeProto.STRINGS: ("strings", [b"x"]),
}  # fmt: skip


def _of_attribute(old: AttributeProto) -> Iterator[tuple[str, AttributeProto | None]]:
    """The attribute without a value, with others of its kind, and of another kind."""
    yield " none", None
    if old.type == AttributeProto.TENSOR:
        for array in _tensors():
            yield f" {array!r}", AttributeProto(name=old.name, type=old.type, t=numpy_helper.from_array(array))
    elif old.type in _KINDS:
        field, usual = _KINDS[old.type]
        for value in _values(getattr(old, field), usual):
            yield f" {value!r}", AttributeProto(name=old.name, type=old.type, **{field: value})
    for kind, (field, value) in _KINDS.items():
        if kind != old.type:
            yield f" {value!r}", AttributeProto(name=old.name, type=kind, **{field: value})


def _values(old: Any, usual: Any) -> list[Any]:
    """Other values of an attribute's kind, of which ``usual`` is one."""
    if isinstance(old, int):
        return list(INTEGERS)
    if isinstance(old, float):
        return list(FLOATS)
    if isinstance(old, bytes):
        return [b"", b"x", b"linear"]
    items = list(old)
    like = items[0] if items else usual[0]
    some: list[list[Any]] = [[], items[:-1], [*items, like]]
    for value in _values(like, like):
        some += [[value], [value, *items[1:]], [value] * len(items)]
    return some


def _tensors() -> Iterator[Array]:
    for kind in ("f4", "i8", "u1", "?"):
        for shape in ((), (0,), (1,), (2,), (1, 1)):
            yield np.zeros(shape, kind)
    yield np.array([np.nan], np.float32)
    yield np.array(["a"], object)


def _set_attribute(model: ModelProto, *, k: int, name: str, new: AttributeProto | None) -> None:
    attributes = model.graph.node[k].attribute
    for attribute in [a for a in attributes if a.name == name]:
        attributes.remove(attribute)
    if new is not None:
        attributes.append(new)


# ----------------------------------------------------------------------------------------------------------- open


def _late(signum: int, frame: object) -> None:
    raise TimeoutError(f"one change takes more than {SECONDS} s")


def open_changes(data: bytes, build: Callable[[bytes], str], out: Path) -> str:
    """Imports the model after each change, and builds some; ``ran``.

    Raises AssertionError that names a change after which something other than a refusal was raised. The model is in
    ``out`` then.
    """
    model = ModelProto.FromString(data)
    signal.signal(signal.SIGALRM, _late)
    for label, change in changes(model):
        altered = changed(model, change)
        signal.alarm(SECONDS)
        try:
            if zlib.crc32(altered) % BUILT:
                import_model(altered)
            else:
                build(altered)
        except Exception as error:
            if isinstance(error, InternalError) or not isinstance(error, ArcweldError):
                out.mkdir(parents=True, exist_ok=True)
                (out / f"{model.graph.name}.onnx").write_bytes(altered)
                raise AssertionError(f"{model.graph.name}, {label}") from error
        finally:
            signal.alarm(0)
    return "ran"
