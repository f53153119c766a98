"""Extracts one launch from an engine as an engine of its own with static shapes, for a separate comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec.structs import replace as replace_struct

from arcweld.compiler.dims import evaluate, parse
from arcweld.runtime import program as prog
from arcweld.runtime.engine_file import EngineData


def launch_of(data: EngineData, name: str) -> prog.Launch:
    """The engine's launch of that name, which must exist."""
    return next(x for x in data.program.all_launches() if x.name == name)


def single_launch(data: EngineData, names: Sequence[str], entry: str, sizes: Mapping[str, int]) -> EngineData:
    """An engine of the launches ``names``, with the symbols replaced by ``sizes``.

    The last launch runs the kernel ``entry`` and its results are the outputs. The launches before it write the same
    tensor. Whatever they read is an input, weights excepted; so is the state that they change in place.
    """
    evaluator = _Evaluator(sizes)
    *before, last = (launch_of(data, name) for name in names)
    part = next(p for p in data.program.parts() if any(x.name == last.name for x in p.launches))
    chosen = replace_struct(last, variants=tuple(v for v in last.variants if v.entry == entry))
    launches = tuple(evaluator.launch(x) for x in (*before, chosen))
    aliases = tuple(a for a in part.aliases if a.name in last.writes)
    reads = dict.fromkeys((*(t for x in launches for t in x.reads), *(a.of for a in aliases)))
    weights = tuple(w for w in part.weights if w.name in reads)
    stored = {w.name for w in weights}
    tensors = {t.name: t for t in (*part.inputs, *part.outputs, *part.temps)}
    program = prog.Program(
        schema=prog.SCHEMA,
        name=last.name,
        symbols=(),
        inputs=tuple(evaluator.tensor(tensors[n]) for n in reads if n not in stored),
        outputs=tuple(evaluator.tensor(tensors[n]) for n in dict.fromkeys(last.writes)),
        weights=weights,
        temps=(),
        aliases=aliases,
        launches=launches,
        state=tuple(prog.State(a.of, a.name) for a in aliases),
    )
    return _with_parts(data, program)


def _with_parts(data: EngineData, program: prog.Program) -> EngineData:
    """``data`` with another program, reduced to the sources, object code and weights that the program uses."""
    used = {v.kernel for x in program.launches for v in x.variants}
    return replace(
        data,
        program=program,
        sources={k: v for k, v in data.sources.items() if k in used},
        weights={w.name: data.weights[w.name] for w in program.weights},
        cubins={k: v for k, v in data.cubins.items() if k[1] in used},
        ptx={k: v for k, v in data.ptx.items() if k in used},
        graph="",
        verify=None,
    )


@dataclass(frozen=True, slots=True)
class _Evaluator:
    """Replaces the expressions in parts of a program by their values for ``sizes``."""

    sizes: Mapping[str, int]

    def number(self, text: str) -> str:
        return str(evaluate(parse(text), self.sizes))

    def tensor(self, t: prog.Tensor) -> prog.Tensor:
        return replace_struct(t, shape=tuple(self.number(d) for d in t.shape))

    def launch(self, x: prog.Launch) -> prog.Launch:
        return replace_struct(x, variants=tuple(self.variant(v) for v in x.variants), flops="0", iterations="0")

    def variant(self, v: prog.Variant) -> prog.Variant:
        grid = tuple(self.number(g) for g in v.grid)
        own = {kind: tuple(map(self.tensor, getattr(v, kind))) for kind in ("workspace", "counters")}
        return replace_struct(v, grid=grid, params=tuple(p.convert(self.number) for p in v.params), tiling=None, **own)
