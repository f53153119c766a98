"""Opens an altered file in a child process with limits, and says how that ended; an engine, every way without trust."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from arcweld.cli.app import main
from arcweld.cli.common import interface
from arcweld.compiler.errors import ArcweldError
from arcweld.compiler.text import parse_graph
from arcweld.driver.api import compile as compile_model
from arcweld.driver.api import compile_graph
from arcweld.driver.samples import sample_inputs, sample_sizes
from arcweld.runtime import records
from arcweld.runtime.engine import Engine, load
from arcweld.runtime.sim.build import runtime_library

GRAPHS = {
    "layers": (
        "graph 'layers'\nsymbol N(lo=1, hi=64)\ninput %x: f32[N, 16]\nweight %w: f32[16, 32]\nweight %v: f32[32, 8]\n"
        "%a = MatMul(%x, %w) @ 'first'\n%b = Relu(%a) @ 'relu'\n%c = MatMul(%b, %v) @ 'second'\n"
        "%y = Softmax(%c, axis=1) @ 'softmax'\noutput %y 'result'\n"
    ),
    "movement": (
        "graph 'movement'\nsymbol n(lo=1, hi=9)\ninput %x: f16[n, 6, 8]\ninput %i: i64[3]\nweight %t: f32[10, 4]\n"
        "%p = Pad(%x, pads=(0, 1, 0, 0, 1, 2), mode='constant', value=0.5)\n%s = Slice(%p, starts=(0, 7, 0), "
        "sizes=(n, 4, 10), steps=(1, -2, 1))\n%r = Reshape(%s, shape=(n, 40))\n%y = ReduceSum(%r, axes=(1,), "
        "keepdims=1)\n%g = Gather(%t, %i, axis=0)\n%z = Transpose(%g, perm=(1, 0))\noutput %y\noutput %z\n"
    ),
    "image": (
        "graph 'image'\ninput %x: f32[2, 3, 9, 9]\nweight %w: f32[8, 3, 3, 3]\nweight %k: f32[1] data=(0.25,)\n"
        "%c = Conv(%x, %w, strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1), group=1, layout='NCHW')\n"
        "%m = Mul(%c, %k)\n%p = MaxPool(%m, kernel_shape=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0), dilations=(1, 1), "
        "ceil_mode=0, layout='NCHW')\n%y = Sigmoid(%p)\noutput %y\n"
    ),
    "step": (
        "graph 'step'\nsymbol s(lo=1, hi=8)\ninput %x: f32[s, 16]\ninput %at: i64[s]\ninput %k: f32[32, 16]\n"
        "weight %w: f32[16, 16]\n%p = MatMul(%x, %w)\n%i = Reshape(%at, shape=(s, 1))\n%j = Expand(%i, shape=(s, 16))\n"
        "%new = ScatterElements(%k, %j, %p, axis=0, reduction='none', strict=1)\n"
        "%y = ReduceSum(%new, axes=(0,), keepdims=0)\noutput %y\noutput %new 'now' in %k\n"
    ),
}  # fmt: skip
RANGES = {"step": ["s=1", "s=2..4"]}


@cache
def originals(folder: Path) -> tuple[bytes, ...]:
    """Engine files to alter: open and fixed sizes, half precision, object code, evidence, state, ranges of sizes."""
    files = []
    for k, (name, text) in enumerate(GRAPHS.items()):
        archs = ["sm_80"] if k == 0 else None
        engine = compile_graph(parse_graph(text), device="sim", arch=archs, ranges=RANGES.get(name))
        engine.save(folder / f"{name}.engine")
        files.append((folder / f"{name}.engine").read_bytes())
    for name, model in (("stages", _staged()), ("texts", _texts())):
        compile_model(model, device="sim").save(folder / f"{name}.engine")
        files.append((folder / f"{name}.engine").read_bytes())
    return tuple(files)


def _staged() -> bytes:
    """A model of stages: a branch on data, a loop that data end, counts, a sequence, an operator of the host."""
    info, node = helper.make_tensor_value_info, helper.make_node
    then = helper.make_graph([node("Relu", ["x"], ["p"])], "then", [], [info("p", TensorProto.FLOAT, [6])])
    other = helper.make_graph([node("Neg", ["x"], ["q"])], "else", [], [info("q", TensorProto.FLOAT, [6])])
    body = helper.make_graph(
        [
            node("Add", ["v", "v"], ["w"]), node("ReduceMax", ["w"], ["m"], keepdims=0),
            node("Less", ["m", "ten"], ["on"]),
        ],
        "body", [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("v", TensorProto.FLOAT, [6])],
        [info("on", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, [6])],
    )  # fmt: skip
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=0), node("Greater", ["s", "ten"], ["c"]),
        node("If", ["c"], ["y"], then_branch=then, else_branch=other),
        node("Loop", ["three", "", "y"], ["l"], body=body), node("Reshape", ["l", "twos"], ["rows"]),
        node("Unique", ["rows"], ["u"], axis=0), node("NonZero", ["l"], ["z"]),
        node("SequenceConstruct", ["x", "l"], ["pair"]),
    ]  # fmt: skip
    outputs = [info("u", TensorProto.FLOAT, None), info("z", TensorProto.INT64, None)]
    outputs.append(helper.make_tensor_sequence_value_info("pair", TensorProto.FLOAT, None))
    constants = [helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0]), helper.make_tensor("three", 7, [], [3])]
    constants.append(helper.make_tensor("twos", 7, [2], [3, 2]))
    inputs = [info("x", TensorProto.FLOAT, [6])]
    graph = helper.make_graph(nodes, "stages", inputs, outputs, initializer=constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(proto.SerializeToString())


def _texts() -> bytes:
    """A model of strings: every operator of the host that takes or gives them, a branch, and kernels between."""
    info, node, ml = helper.make_tensor_value_info, helper.make_node, "ai.onnx.ml"
    then = helper.make_graph([node("Identity", ["t"], ["p"])], "then", [], [info("p", TensorProto.STRING, [4])])
    other = helper.make_graph([node("Identity", ["s"], ["q"])], "else", [], [info("q", TensorProto.STRING, [4])])
    nodes = [
        node("StringConcat", ["s", "end"], ["t"]), node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        node("Mul", ["f", "f"], ["g"]), node("Cast", ["g"], ["u"], to=TensorProto.STRING),
        node("Equal", ["s", "u"], ["e"]), node("StringSplit", ["t"], ["v", "c"], delimiter="!"),
        node("Gather", ["t", "c"], ["w"]), node("StringNormalizer", ["w"], ["n"], stopwords=["1!"]),
        node("LabelEncoder", ["s"], ["l"], domain=ml, keys_strings=["1", "2"], values_int64s=[3, 4]),
        node("LabelEncoder", ["l"], ["m"], domain=ml, keys_int64s=[3, 4], values_strings=["three", "four"]),
        node("ReduceMax", ["g"], ["h"], keepdims=0), node("Greater", ["h", "ten"], ["b"]),
        node("If", ["b"], ["y"], then_branch=then, else_branch=other),
    ]  # fmt: skip
    outputs = [info(x, TensorProto.STRING, None) for x in ("v", "n", "m", "y", "u")]
    outputs.append(info("e", TensorProto.BOOL, None))
    constants = [helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0])]
    constants.append(helper.make_tensor("end", TensorProto.STRING, [1], [b"!"]))
    graph = helper.make_graph(nodes, "texts", [info("s", TensorProto.STRING, [4])], outputs, initializer=constants)
    sets = [helper.make_opsetid("", 21), helper.make_opsetid(ml, 4)]
    return bytes(helper.make_model(graph, opset_imports=sets, ir_version=9).SerializeToString())


def prepare(folder: Path) -> None:
    """Compiles what every child uses, and forgets what is built here."""
    runtime_library()
    forgotten = folder / "trust"
    records._folder = lambda: forgotten  # type: ignore[assignment]
    records.known = lambda manifest: False  # type: ignore[assignment]


def run_once(engine: Engine) -> None:
    graph = interface(engine.data)
    engine.run(sample_inputs(graph, sample_sizes(graph)))


def open_every_way(data: bytes, folder: Path) -> str:
    """``refused`` or ``ran``. Whatever is raised but an ArcweldError is a finding."""
    path = folder / "altered.engine"
    path.write_bytes(data)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        code = main(["inspect", str(path)])
    if code not in (0, 2, 3, 4):
        raise AssertionError(f"inspect ends with {code}: {shown.getvalue()[-2000:]}")
    try:
        engine = load(data, "sim")
        run_once(engine)
    except ArcweldError:
        return "refused"
    return "ran"


@dataclass(frozen=True, slots=True)
class Limits:
    """What opening a file may take.

    seconds    of wall time
    processor  seconds of processor time, 0: any
    memory     bytes of address space, beyond what the process has before
    """

    seconds: float = 20
    processor: int = 0
    memory: int = 4 << 30


def strike(data: bytes, open_file: Callable[[bytes, Path], str], limits: Limits = Limits()) -> str:
    """``refused``, ``ran``, or what went wrong in a child that opens the file: a finding."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _in_child(data, open_file, limits, reader, writer)
    os.close(writer)
    said = _read(reader, child, time.monotonic() + limits.seconds)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if said is None:
        return f"takes more than {limits.seconds:g} s"
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}: {said}" if code < 0 else said or f"exit status {code}"


def _in_child(
    data: bytes, open_file: Callable[[bytes, Path], str], limits: Limits, reader: int, writer: int
) -> None:  # fmt: skip
    try:
        os.close(reader)
        os.setsid()  # so that compilers can be ended with it
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        memory = pages * resource.getpagesize() + limits.memory
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        if limits.processor:
            resource.setrlimit(resource.RLIMIT_CPU, (limits.processor, limits.processor))
        with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
            said = open_file(data, Path(folder))
    except MemoryError:
        said = f"takes more than {limits.memory / (1 << 30):g} GiB"
    except BaseException:
        said = traceback.format_exc()[-3000:]
    try:
        os.write(writer, said.encode(errors="replace"))
    finally:
        os._exit(0)  # also where the parent has ended


def _read(reader: int, child: int, end: float) -> str | None:
    """What the child says; None if it has to be killed."""
    said = b""
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return None
        more = os.read(reader, 65536)
        if not more:
            return said.decode(errors="replace")
        said += more
