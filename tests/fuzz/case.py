"""One fuzz case: a random graph and how it is built and run; what is checked of it; its text, which reproduces it."""

from __future__ import annotations

import json
import random
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from graph_runs import assert_same, by_numpy, expected, on_simulator
from maker import MOST
from onnx_oracle import by_onnxruntime, onnx_model, oracle
from random_graphs import SIZES, feeds_of, random_graph

from arcweld.compiler.ir import Graph, Node, TensorType, Value
from arcweld.compiler.ops.registry import Kind, concrete, opdef
from arcweld.compiler.options import Options
from arcweld.compiler.reference import run_reference
from arcweld.compiler.text import parse_graph, print_graph
from arcweld.driver.build import Build, build_graph
from arcweld.driver.conditioning import rounding_error
from arcweld.driver.metrics import relative_error
from arcweld.passes.pipeline import pass_names

Arrays = Mapping[str, np.ndarray]
# without this one the graph has operators that no kernel is made of
OPTIONAL_PASSES = tuple(name for name in pass_names() if name != "decompose")
STEPS = (2, 14)  # of which about half give a node
NO_ORACLE: Counter[str] = Counter()  # nodes that neither ONNX Runtime nor onnx.reference evaluates
SIMULATED = 8  # one case in so many runs on the checked simulator too: its kernels have to be compiled


@dataclass(frozen=True)
class Case:
    """A graph, the sizes of its symbols (one run each), and the build's options; ``seed`` drew it."""

    graph: Graph
    sizes: tuple[dict[str, int], ...] = ({},)
    precision: str = "fp32"
    disable: str = ""
    simulate: bool = False
    seed: str = ""

    def feeds(self, k: int) -> dict[str, np.ndarray]:
        """The inputs of run ``k``."""
        return feeds_of(self.graph, self.sizes[k], k)


@dataclass(frozen=True)
class Failure:
    """Where a case failed, and how. Two failures of equal ``stage`` and ``kind`` count as the same."""

    stage: str
    kind: str
    detail: str

    def same(self, other: Failure | None) -> bool:
        return other is not None and (self.stage, self.kind) == (other.stage, other.kind)


def draw(seed: str) -> Case:
    """The case of a seed: always the same one."""
    rng = random.Random(seed)
    graph = random_graph(rng.randrange, rng.randint(*STEPS))
    while not graph.nodes:
        graph = random_graph(rng.randrange, rng.randint(*STEPS))
    symbols = graph.symbols()
    least = {s.name: s.lo for s in symbols}
    sizes = ({s.name: SIZES[s.name] for s in symbols}, least) if symbols else ({},)
    # inputs that a half-precision build rounds must not be compared
    precision = "fp32" if _discontinuous(graph) else rng.choice(("fp32", "fp32", "fp16", "bf16"))
    disable = rng.choice(("", rng.choice(OPTIONAL_PASSES)))
    return Case(graph, sizes, precision, disable, rng.randrange(SIMULATED) == 0, seed)


def _discontinuous(graph: Graph) -> bool:
    """True if a node makes an integer or a condition of floats."""
    return any(x.dtype.is_float for n in graph.nodes if not n.output.dtype.is_float for x in n.operands())


# ------------------------------------------------------------------------------------------------------------ checks


def check(case: Case, stage: str = "") -> Failure | None:
    """The first failure of a case, or None. With ``stage`` only that one is looked for."""
    for name, run in STAGES.items():
        if stage in ("", name):
            try:
                run(case)
            except Exception as error:  # whatever is raised is the finding
                return Failure(name, _kind(error), _detail(error))
    return None


def _kind(error: Exception) -> str:
    if isinstance(error, AssertionError):
        return "differs"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.name}"


def _detail(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[:12])


def _text(case: Case) -> None:
    """A graph's text says all of it."""
    text = print_graph(case.graph, data_limit=MOST)
    assert print_graph(parse_graph(text), data_limit=MOST) == text


def _references(case: Case) -> None:
    """Every node's reference agrees with ONNX Runtime or onnx.reference."""
    graph, feeds, sizes = case.graph, case.feeds(0), case.sizes[0]
    made = {o.name for n in graph.nodes for o in n.outputs}
    values = {**{n: w.data for n, w in graph.weights.items()}, **feeds}
    values |= run_reference(graph, feeds, keep=made, bind=sizes)
    for node in graph.nodes:
        alone, arrays = _alone(node, values, sizes)
        outputs = _outputs(alone, arrays)
        if outputs is None:
            NO_ORACLE[f"{node.op} {node.output.dtype.value}"] += 1
            continue
        want = dict(zip((o.name for o in alone.outputs), outputs, strict=True))
        got = {o.name: values[old.name] for o, old in zip(alone.outputs, node.outputs)}
        try:
            _compare(alone, got, want, alone, arrays, {})
        except AssertionError as error:
            raise AssertionError(f"{node.op}: {error}") from error


def _outputs(alone: Graph, arrays: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """The node's outputs according to an independent implementation; None (which is counted) where there is none."""
    pool = opdef(alone.nodes[0].op).kind is Kind.WINDOW  # onnx.reference gets their shapes wrong
    try:
        return by_onnxruntime(onnx_model(alone), arrays) if pool else oracle(alone, arrays)
    except Exception:  # neither takes every type
        return None


def _alone(node: Node, values: Arrays, sizes: Mapping[str, int]) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph of a node by itself, with the shapes that its operands have, and the operands."""
    arrays = {f"x{k}": values[v.name] for k, v in enumerate(node.inputs) if v is not None}
    types = {f"x{k}": v.dtype for k, v in enumerate(node.inputs) if v is not None}
    inputs = {name: Value(name, TensorType(types[name], a.shape)) for name, a in arrays.items()}
    outputs = tuple(Value(f"y{k}", TensorType(o.dtype, values[o.name].shape)) for k, o in enumerate(node.outputs))
    operands = tuple(inputs.get(f"x{k}") for k in range(len(node.inputs)))
    alone = Node(node.op, operands, outputs, concrete(node.attrs, sizes), node.origin)
    return Graph(node.op, tuple(inputs.values()), outputs, (alone,)), arrays


def _build(case: Case) -> Build:
    options = Options(case.precision, ("sm_80",), frozenset({case.disable} - {""}))
    return build_graph(case.graph, options, compile_kernels=False, verify_each=True)


def _kernels(case: Case) -> None:
    """Passes, fusion and lowering: the kernels, evaluated by numpy, compute what the graph says."""
    _runs(case, by_numpy)


def _simulator(case: Case) -> None:
    """Printing, templates and the engine too: the checked simulator computes the same."""
    if case.simulate:
        _runs(case, lambda build, feeds, sizes: on_simulator(build, feeds))


def _runs(case: Case, run: Callable[[Build, Arrays, Mapping[str, int]], Arrays]) -> None:
    build = _build(case)
    for k, sizes in enumerate(case.sizes):
        feeds = case.feeds(k)
        got, want = run(build, feeds, sizes), expected(case.graph, feeds, sizes)
        _compare(case.graph, got, want, build.fused.graph, feeds, sizes)


def _compare(
    graph: Graph, got: Arrays, want: Arrays, computed: Graph, feeds: Arrays, sizes: Mapping[str, int]
) -> None:  # fmt: skip
    """As ``assert_same``, but for differences that rounding in ``computed`` explains."""
    names = dict(zip(computed.labels(), computed.outputs))
    for label, w in want.items():
        try:
            assert_same(graph, got, {label: w})
        except AssertionError:
            o = names.get(label)
            same_kind = got[label].dtype == w.dtype and got[label].shape == w.shape
            if o is None or not o.dtype.is_float or not same_kind:
                raise
            allowed = rounding_error(computed.nodes, {**feeds, o.name: w}, computed.weights, sizes, o.name)
            if not relative_error(got[label], w) <= allowed:
                raise


STAGES: dict[str, Callable[[Case], None]] = {
    "text": _text, "references": _references, "kernels": _kernels, "simulator": _simulator,
}  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- text

FIELDS = ("seed", "precision", "disable", "simulate", "sizes")


def write(case: Case, failure: Failure) -> str:
    """The case as IR text; comments hold the rest, and what went wrong."""
    lines = ["# A failing fuzz case. Run it again: python tests/fuzz THIS_FILE"]
    lines += [f"# {name} = {json.dumps(getattr(case, name))}" for name in FIELDS]
    lines += [f"# {line}" for line in f"{failure.stage}: {failure.kind}\n{failure.detail}".splitlines()]
    return "\n".join(lines) + "\n" + print_graph(case.graph, data_limit=MOST)


def read(text: str) -> Case:
    """The case that ``write`` wrote."""
    heads = (line[2:].partition(" = ") for line in text.splitlines() if line.startswith("# "))
    fields = {name: json.loads(value) for name, eq, value in heads if eq and name in FIELDS}
    case = replace(Case(parse_graph(text)), **fields)
    return replace(case, sizes=tuple(case.sizes))
