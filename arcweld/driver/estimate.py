"""What a model's launches take on a card, modelled from what the program says of them; nothing is compiled or run.

Kernels with tiles are modelled as such, all others by the bytes that they move and the operations that they do. A value
that is read by its indices counts as far as the kernel can reach it. What the host does between stages is not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arcweld.codegen.cost.choice import kind_of, resident
from arcweld.codegen.cost.fitted import FITTED
from arcweld.codegen.cost.model import Modelled, StreamWork, TiledWork, full_rate, stream_time, tiled_time
from arcweld.compiler.archs import parse_arch
from arcweld.compiler.cards import Card
from arcweld.compiler.cards import card as card_called
from arcweld.compiler.errors import DeviceError, InputError, UsageError
from arcweld.compiler.ir import Graph
from arcweld.compiler.options import Options
from arcweld.compiler.tiling import Tiling
from arcweld.driver.build import build_graph
from arcweld.driver.staged_build import merged
from arcweld.driver.stages import has_host_nodes, in_stages
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.expressions import Expression
from arcweld.runtime.launch_list import compute_sizes
from arcweld.runtime.plan import ExecutionPlan, LaunchPlan
from arcweld.runtime.program import Program
from arcweld.runtime.steps import sizes_given

PROGRAMMATIC = 90  # the first architecture with programmatic dependent launch
FEW_ROWS = ("contract", "chain")  # products without tiles, whose time is that of reading their right operand
STREAMED = (*FEW_ROWS, "pointwise", "transpose")
ONCE = 4.0  # microseconds from the call of a CUDA graph to its first kernel, which is assumed


@dataclass(frozen=True, slots=True)
class LaunchEstimate:
    """One launch: its modelled time, and the bytes that it moves and operations that it does.

    source         the name of its text among the engine's sources
    stage          the number of the stage that it is part of, 0 for an engine without steps
    grid, block    blocks of the grid and threads of a block, along x, y and z
    shared_bytes   bytes of dynamic shared memory of a block
    multiplies     what multiplies in it, and operands of which type: ``wgmma f16``; empty where no tiles are
    types          the element types of what it reads and writes, sorted
    """

    name: str
    kernel: str
    template: str
    origin: tuple[str, ...]
    modelled: Modelled
    nbytes: float
    flops: float
    source: str
    stage: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    multiplies: str
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Temporary:
    """A tensor of an arena: ``nbytes`` bytes from ``offset`` on, from launch ``first`` to launch ``last`` of its stage.
    """

    name: str
    offset: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Arena:
    """The arena of a stage: its bytes, its temporaries, and how many launches the stage has."""

    nbytes: int
    temporaries: tuple[Temporary, ...]
    launches: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call takes on a card with the given sizes.

    ``weights`` and ``workspace`` are bytes on the device; ``beside`` says what is not in the time. ``arenas`` has one
    entry for each stage.
    """

    card: Card
    sizes: Mapping[str, int]
    launches: tuple[LaunchEstimate, ...]
    weights: int
    workspace: int
    beside: tuple[str, ...] = ()
    arenas: tuple[Arena, ...] = ()

    @property
    def seconds(self) -> float:
        """Modelled seconds of a call: of its launches, and of its beginning."""
        return (ONCE + sum(x.modelled.us for x in self.launches)) / 1e6

    @property
    def floor_seconds(self) -> float:
        """Seconds that the launches' bytes and operations take at the card's full rates."""
        return sum(x.modelled.floor for x in self.launches) / 1e6

    @property
    def fits(self) -> bool:
        """Whether weights and workspace fit the card's memory."""
        return self.weights + self.workspace <= self.card.memory_bytes

    def cost_per_million(self, price: float) -> float:
        """What a million calls cost, one after another, at ``price`` an hour."""
        return self.seconds * 1e6 / 3600 * price

    def report(self, price: float | None = None) -> dict[str, Any]:
        """The estimate as plain data, with times in milliseconds and microseconds; all of them are modelled."""
        found: dict[str, Any] = {
            "card": self.card.name, "title": self.card.title, "sizes": dict(self.sizes), "modelled": True,
            "latency_ms": self.seconds * 1e3, "throughput_qps": 1 / self.seconds, "floor_ms": self.floor_seconds * 1e3,
            "share_of_roofline": self.floor_seconds / self.seconds, "launches": len(self.launches),
            "weight_bytes": self.weights, "workspace_bytes": self.workspace, "fits": self.fits,
            "beside": list(self.beside),
            "kernels": [
                {
                    "name": x.name, "kernel": x.kernel, "template": x.template, "nodes": list(x.origin),
                    "us": x.modelled.us, "floor_us": x.modelled.floor, "share_of_roofline": x.modelled.share,
                    "bound": x.modelled.bound, "gain_us": x.modelled.us - x.modelled.floor, "bytes": x.nbytes,
                    "flops": x.flops, "parts_us": x.modelled.parts, "grid": list(x.grid), "block": list(x.block),
                    "shared_bytes": x.shared_bytes,
                }
                for x in self.launches
            ],
        }  # fmt: skip
        if price is not None:
            found["cost_per_million"] = self.cost_per_million(price)
        return found


def planned(graph: Graph, precision: str, arch: str) -> EngineData:
    """The engine's data of a model without object code, for estimates: no node is promoted to f32. Raises as builds do.
    """
    options = Options(precision=precision, arch=(arch,))
    if not has_host_nodes(graph):
        return build_graph(graph, options, compile_kernels=False).data
    cut = in_stages(graph)
    return merged(cut, [build_graph(stage, options, compile_kernels=False).data for stage in cut.stages])


def estimate_engine(data: EngineData, card: Card, sizes: Mapping[str, int]) -> Estimate:
    """As ``estimate``, of an engine's data."""
    return estimate(data.program, card, sizes, sum(w.nbytes for w in data.weights.values()))


def estimate_called(data: EngineData, name: str, sizes: Mapping[str, int]) -> Estimate:
    """As ``estimate_engine``, on a card that is called so."""
    return estimate_engine(data, card_called(name), sizes)


def estimate(program: Program, card: Card, sizes: Mapping[str, int], weights: int) -> Estimate:
    """The estimate of a program whose symbols have the values ``sizes``; ``weights``: bytes.

    Sizes that data decide count as the value in ``sizes``, or else as their upper bound. Raises InputError for a
    missing size or one that the program does not serve, UsageError for a card that none of its kernels run on.
    """
    every = {**{n: s.hi for n, s in sizes_given(program.steps).items() if s.hi is not None}, **sizes}
    beside = ["one beginning of a CUDA graph is assumed to take 4 us"] if not program.steps else []
    if program.steps:
        beside = ["what the host does between stages", "turns of loops beyond the first"]
    launches: list[LaunchEstimate] = []
    arenas: list[Arena] = []
    workspace = 0
    for number, stage in enumerate(program.stages if program.steps else (program,)):
        missing = [s.name for s in stage.symbols if s.name not in every]
        if missing:
            raise InputError(f"the size of {missing[0]!r} is needed", hint=f"--shapes, or {missing[0]}=... in Python")
        env = {s.name: every[s.name] for s in stage.symbols}
        plan = _plan(stage.at(env), card)
        found = compute_sizes(plan, env)
        workspace += found.arena_bytes + found.counter_bytes
        launches += _stage(plan, card, found.nbytes, env, number)
        held = (Temporary(t.name, found.arena[t.name], found.nbytes[t.name], t.first, t.last) for t in plan.lifetimes)
        arenas.append(Arena(found.arena_bytes, tuple(held), len(plan.launches)))
    return Estimate(card, dict(sizes), tuple(launches), weights, workspace, tuple(beside), tuple(arenas))


def _plan(program: Program, card: Card) -> ExecutionPlan:
    try:
        return ExecutionPlan(program, card.arch)
    except DeviceError as error:
        raise UsageError(
            f"the engine has no kernels for {card.title} ({card.arch}): {error.message}",
            hint=f"build with --arch {card.arch}, or estimate the model itself",
        ) from None


def _stage(
    plan: ExecutionPlan, card: Card, nbytes: Mapping[str, int], env: dict[str, int], stage: int
) -> list[LaunchEstimate]:
    """The launches of a stage, on a card that they keep hot: the load is that of a cool card's times."""
    tilings = [_tiling(x, env) for x in plan.launches]

    def under(load: float) -> list[LaunchEstimate]:
        return [_launch(x, t, load, card, plan, nbytes, env, stage) for x, t in zip(plan.launches, tilings)]

    busy = sum(full_rate(t, card) for t in tilings if t is not None)
    return under(busy / sum(x.modelled.us for x in under(0.0))) if busy else under(0.0)


def _tiling(x: LaunchPlan, env: dict[str, int]) -> Tiling[int] | None:
    tiling = x.variant.tiling
    return None if tiling is None else tiling.convert(lambda text: Expression(text)(env))


def _launch(
    x: LaunchPlan, tiling: Tiling[int] | None, load: float, card: Card, plan: ExecutionPlan,
    nbytes: Mapping[str, int], env: dict[str, int], stage: int,
) -> LaunchEstimate:  # fmt: skip
    """The estimate of a launch whose tiles are ``tiling``; ``load``: as in ``TiledWork``."""
    v = x.variant
    chained = v.pdl and (parse_arch(card.arch) or (0, ""))[0] >= PROGRAMMATIC
    # at sizes too small for a window, formulas of how often a loop runs may be negative: then it does not run
    flops, own = max(0.0, float(Expression(x.launch.flops)(env))), {t.name for t in plan.program.temps}
    touched = dict.fromkeys((*x.launch.reads, *x.launch.writes))
    if tiling is not None:
        moved = float(sum(nbytes[n] for n in touched))
        work = TiledWork(tiling, resident(v.shared_bytes, math.prod(v.block), card), moved, chained, load)
        modelled = tiled_time(work, card, FITTED[kind_of(x.launch.template, tiling.engine)])
    else:
        most = max(0, Expression(x.launch.iterations)(env))
        bits = {n: plan.tensors[n].dtype.bits for n in touched}
        reached = {n: min(float(nbytes[n]), most * plan.tensors[n].dtype.nbytes(8) // 8) for n in touched}
        moved, near = sum(reached.values()), sum(reached[n] for n in touched if n in own)
        unpacked = sum(reached[n] * 8 / bits[n] for n in touched if bits[n] < 8)
        operations = 0.0 if x.launch.template in FEW_ROWS else flops
        kind = "decode" if x.launch.template == "attention" else "stream" if x.launch.template in STREAMED else "rows"
        modelled = stream_time(StreamWork(moved, near, operations, unpacked, chained), card, FITTED[kind])
    gx, gy, gz = (g(env) for g in x.grid)
    return LaunchEstimate(
        x.launch.name, v.entry, x.launch.template, x.launch.origin, modelled, moved, flops, v.kernel, stage,
        (gx, gy, gz), v.block, v.shared_bytes, "" if tiling is None else f"{tiling.engine} {tiling.dtype}",
        tuple(sorted({plan.tensors[n].dtype.value for n in touched})),
    )  # fmt: skip
