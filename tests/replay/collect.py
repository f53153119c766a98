"""Renders every kernel that this revision's test cases and models give: ``python collect.py TREE OUT``.

TREE is the folder that holds the ``arcweld`` package of this very revision. The comparison runs each revision's own
collector, so that internals may move freely: this is the one file of the replay that knows them.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from records import VERSION, Collection, Record, Tiled, save

import arcweld
import arcweld.codegen
from arcweld.codegen.cost.choice import kind_of
from arcweld.codegen.kernel import Kernel, KernelSource
from arcweld.codegen.nvrtc.compiler import Job, headers
from arcweld.codegen.templates.contract.problem import likely
from arcweld.codegen.templates.implementation import Implementation
from arcweld.codegen.templates.select import IMPLEMENTATIONS, select
from arcweld.compiler.archs import runs_on
from arcweld.compiler.dims import Dim, to_text
from arcweld.compiler.ir import Graph
from arcweld.compiler.onnx.importer import import_onnx
from arcweld.compiler.ops.registry import all_ops
from arcweld.compiler.options import Options
from arcweld.compiler.parameters import Float, Integer, Parameter, Pointer
from arcweld.compiler.reference import all_cases, case_graph
from arcweld.compiler.text import parse_graph
from arcweld.driver.api import import_model
from arcweld.driver.build import build_graph
from arcweld.driver.object_code import in_order
from arcweld.models.builders import build
from arcweld.models.catalogue import MODELS
from arcweld.models.fetch import is_fetched, model_path

CODEGEN_TESTS = Path(__file__).resolve().parents[1] / "codegen"
ARCHS = ("sm_80", "sm_90a")
ALTERNATIVES = 3  # tactics of an implementation that are rendered for one test case beside the default, spread evenly

# (builder, options that leave every distinct kernel but few repetitions, precisions, is the batch symbolic)
BUILT: tuple[tuple[str, dict[str, int], tuple[str, ...], bool], ...] = (
    ("resnet18", {}, ("fp32", "fp16"), False),
    ("resnet18", {"batch": 8}, ("fp16",), True),
    ("resnet50", {}, ("fp32", "fp16", "bf16"), False),
    ("mobilenet_v2", {}, ("fp32", "fp16"), False),
    ("vit_tiny", {"depth": 2}, ("fp32", "fp16"), False),
    ("vit_b16", {"depth": 2}, ("fp32", "fp16"), False),
    ("bert", {"layers": 2}, ("fp32", "fp16", "bf16"), False),
    ("bert", {"layers": 2, "batch": 4}, ("fp16",), True),
    ("gpt2", {"layers": 2}, ("fp32", "fp16"), False),
    ("llama", {"layers": 1, "vocabulary": 4096}, ("fp32", "fp16"), False),
)


class Collector:
    """Gathers records; equal texts are kept once."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.texts: dict[str, int] = {}

    def add(self, case: str, arch: str, template: str, source: KernelSource) -> None:
        text = self.texts.setdefault(source.source, len(self.texts))
        self.records.append(Record(case, arch, source.entry, text, launch_facts(source), tiled(template, source)))

    def graph(self, case: str, graph: Graph, precision: str = "fp32") -> None:
        """Every launch of a graph, with the sources that a build for both architectures would store."""
        made = build_graph(graph, Options(precision=precision, arch=ARCHS), compile_kernels=False)
        for n, launch in enumerate(in_order(made.planned)):
            for arch, source in zip(ARCHS, launch.sources):  # one source where the portable one serves both
                self.add(f"{case}/{n:03}/{arch}", arch, launch.bound.kernel.template, source)


def tiled(template: str, s: KernelSource) -> Tiled | None:
    """What a model of time needs of a source, None where that has no tiles."""
    if s.tiling is None:
        return None
    return Tiled(kind_of(template, s.tiling.engine), s.tiling.convert(likely), s.shared_bytes, math.prod(s.block))


def launch_facts(s: KernelSource) -> tuple[str, ...]:
    """What a launch needs beside the code, one fact a line. Names of parameters are no part of it."""
    facts = [
        f"arch {s.arch}", f"grid {' | '.join(to_text(d) for d in s.grid)}", f"block {s.block}",
        f"shared {s.shared_bytes}", f"cluster {s.cluster}", f"pdl {s.pdl}", f"zero {s.zero}",
    ]  # fmt: skip
    own = [f"{b.name} {b.dtype.value} {[to_text(d) for d in b.shape]}" for b in (*s.workspace, *s.counters)]
    facts += ["cooperative"] * s.cooperative
    return (*facts, *own, *(_parameter(p) for p in s.params))


def _parameter(p: Parameter[Dim]) -> str:
    match p:
        case Pointer():
            return f"buffer {p.tensor} + 0"
        case Integer():
            return f"i{p.bits} {to_text(p.value)} + 0"
        case Float():
            return f"f32 {p.value!r} + 0"
    dims, strides = ([to_text(d) for d in many] for many in (p.dims, p.strides))
    view = f"dims {dims} strides {strides} box {p.box} steps {p.element_strides} swizzle {p.swizzle}"
    return f"tensor_map {p.tensor} + {to_text(p.offset)} {view}"


# ------------------------------------------------------------------------------------------------------ test cases


def collect_cases(found: Collector) -> None:
    """The kernels of the template tests, with the choice for each architecture, the case's tactic, and others."""
    for path in sorted(CODEGEN_TESTS.glob("cases_*.py")):
        suite = path.stem.removeprefix("cases_")
        for case in importlib.import_module(path.stem).cases():
            for arch in ARCHS:
                for name, source in renderings(case.kernel, case.tactic, arch):
                    found.add(f"case:{suite}:{case.id}/{arch}/{name}", arch, case.kernel.template, source)


def renderings(kernel: Kernel, tactic: Any, arch: str) -> Iterator[tuple[str, KernelSource]]:
    """The choice, the given tactic, and alternatives; portable ones are left to the least architecture."""
    table = _table(kernel)
    fitting = [i for i in table if i.fits(kernel, arch)]
    if kernel.template in IMPLEMENTATIONS:
        yield "choice", select(kernel, arch)
    if tactic is not None:
        own = table if len(table) == 1 else [i for i in table if i.name == tactic.implementation]
        for i in own:
            if runs_on(i.arch, arch):
                yield from _if_it_runs("given", i.render(kernel, tactic, arch), arch)
    for i in fitting:
        tactics = i.tactics(kernel, arch)
        for n in spread(len(tactics)):
            source = i.render(kernel, tactics[n], arch)
            if source.arch == arch:
                yield f"{i.name}#{n}", source


def _table(kernel: Kernel) -> Sequence[Implementation]:
    """The implementations of the kernel's template; some cases name one implementation as their template."""
    if kernel.template in IMPLEMENTATIONS:
        return IMPLEMENTATIONS[kernel.template]
    return [i for table in IMPLEMENTATIONS.values() for i in table if i.name == kernel.template][:1]


def _if_it_runs(name: str, source: KernelSource, arch: str) -> Iterator[tuple[str, KernelSource]]:
    if runs_on(source.arch, arch):
        yield name, source


def spread(count: int) -> list[int]:
    """The first index and at most ``ALTERNATIVES`` others, evenly spread over the rest."""
    few = min(count, ALTERNATIVES + 1)
    return sorted({k * (count - 1) // max(few - 1, 1) for k in range(few)})


# ---------------------------------------------------------------------------------------------------------- graphs


def collect_graphs(found: Collector) -> None:
    """The golden kernels' graphs and every case of the operator registry."""
    golden = importlib.import_module("test_golden")
    for name, (_, text) in golden.CASES.items():
        found.graph(f"golden:{name}", parse_graph("graph 'golden'\n" + golden.SYMBOLS + text))
    for op in all_ops():
        for k, (case, dtype) in enumerate(all_cases(op)):
            found.graph(f"op:{op.name}-{k}-{dtype.value}", case_graph(op, case, dtype)[0])


def collect_models(found: Collector) -> tuple[str, ...]:
    """The builders' models and the catalogue's that are in the cache; the names of those that are not."""
    for name, options, precisions, symbolic in BUILT:
        built = build(name, **options)
        graph = import_model(built.module, *built.args, dynamic_shapes=built.dynamic_shapes() if symbolic else None)
        for precision in precisions:
            found.graph(f"model:{name}{':symbolic' if symbolic else ''}:{precision}", graph, precision)
    for name, model in MODELS.items():
        if is_fetched(name):
            found.graph(f"model:{name}:fp32", import_onnx(str(model_path(name)), **model.import_options()))
    return tuple(name for name in MODELS if not is_fetched(name))


def check_origin(tree: Path) -> None:
    """Exits where the package that was imported is another revision's."""
    for module in (arcweld, arcweld.codegen):
        if not Path(str(module.__file__)).is_relative_to(tree):
            sys.exit(f"{module.__name__} was imported from {module.__file__}, not from {tree}")


@contextmanager
def timed(part: str, found: Collector) -> Iterator[None]:
    """Says on standard error how many kernels a part gave, and how long it took."""
    start, before = time.perf_counter(), len(found.records)
    yield
    print(f"{part}: {len(found.records) - before} kernels, {time.perf_counter() - start:.0f} s", file=sys.stderr)


def main(tree: Path, out: Path) -> None:
    """Collects everything and writes it to ``out``."""
    check_origin(tree)
    warnings.simplefilter("ignore")  # torch's exporter warns of its own deprecations
    sys.path[:0] = [str(CODEGEN_TESTS), str(CODEGEN_TESTS.with_name("compiler"))]  # cases, and what they compare with
    found = Collector()
    with timed("test cases", found):
        collect_cases(found)
    with timed("graphs", found):
        collect_graphs(found)
    with timed("models", found):
        absent = collect_models(found)
    options = {arch: Job("", arch).flags for arch in ARCHS}
    save(Collection(VERSION, options, dict(headers()), tuple(found.texts), tuple(found.records), absent), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
