"""The modelled time of one kernel, from what its source says: tiles, steps, bytes, and what a card does in a cycle.

A kernel's time is the gap behind its predecessor, the latency of its first loads, the main loop of the busiest
multiprocessor, its epilogues, and the exchange among blocks that share one tile; never less than its bytes need. The
constants are fitted to measured kernels (``calibrate.py``), within what the hardware can do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from arcweld.compiler.cards import Card
from arcweld.compiler.tiling import Tiling

# Shares of a card's rate that mma.sync on Hopper and ordinary arithmetic reach, beside wgmma: assumed, not measured.
# Elsewhere mma.sync is what the card's rate was published for.
MMA_ON_HOPPER, ORDINARY = 0.62, 0.6
EXPONENTS = 16  # that a multiprocessor computes in a cycle (CUDA Programming Guide, arithmetic instructions)


@dataclass(frozen=True, slots=True)
class TiledWork:
    """A tiled kernel at known sizes.

    tiling    its tiles and steps
    resident  blocks that fit side by side on a multiprocessor
    nbytes    of all operands and results, each counted once
    chained   it may begin while its predecessor ends (programmatic dependent launch)
    load      share of the tensor cores' full rate that its whole chain keeps up, for so long that the card is hot;
              None: the kernel runs alone, and heats the card as far as it lasts long enough
    """

    tiling: Tiling[int]
    resident: int = 1
    nbytes: float = 0.0
    chained: bool = True
    load: float | None = None


@dataclass(frozen=True, slots=True)
class StreamWork:
    """A kernel that memory bounds: pointwise, row-wise, reducing, or a product of few rows.

    nbytes      that it reads and writes, each counted once
    near        of them, those that are in the L2 cache, as what another kernel has just written
    operations  of floating-point numbers, in ordinary arithmetic
    unpacked    numbers of 4 bits that it reads, which ordinary arithmetic takes out of their words
    chained     as in ``TiledWork``
    """

    nbytes: float
    near: float = 0.0
    operations: float = 0.0
    unpacked: float = 0.0
    chained: bool = True


@dataclass(frozen=True, slots=True)
class Constants:
    """What is fitted. Times are in microseconds, rates in shares of the card's own or in bytes a cycle.

    gap, plain_gap   between two kernels, with and without programmatic dependent launch
    fill             from a block's begin to its first operands, and from its last product to the end of its stores
    cold             of it, what is spent where not all operands are requested at once
    tensor           share of the tensor cores' rate in a main loop
    limit, sink      the load above which a hot card lowers its clock, and how fast: by (load / limit) ** sink
    heat             microseconds of full rate after which a card is half as hot as it gets
    shared           bytes a cycle that tensor cores read from shared memory
    feed             bytes a cycle that a multiprocessor gets from the L2 cache
    latency          of a step's loads, shared by those that are under way
    memory           share of the memory's bandwidth
    cache            of the L2 cache's bandwidth, as a multiple of the memory's
    store, stage     an epilogue's time for 10,000 elements: stored by threads, or by TMA
    special, other   the same for special operations, and for reading another tensor
    overlap          share of an epilogue that later tiles of a multiprocessor cost, and of ``fill`` for later blocks
    exchange, moved  of blocks that share a tile, in all and for 10,000 elements
    stream           time of a memory-bound kernel beside its bytes and its gap
    score            operations of softmax in ordinary arithmetic for each of its exponentials
    unpack, begin    numbers of 4 bits that a multiprocessor unpacks in a cycle, and the time before and after that:
                     until what a predecessor has written is there, and for the sums across warps
    """

    gap: float
    plain_gap: float
    fill: float
    cold: float
    tensor: float
    limit: float
    sink: float
    heat: float
    shared: float
    feed: float
    latency: float
    memory: float
    cache: float
    store: float
    stage: float
    special: float
    other: float
    overlap: float
    exchange: float
    moved: float
    stream: float
    score: float
    unpack: float
    begin: float


@dataclass(frozen=True, slots=True)
class Modelled:
    """Modelled microseconds of a kernel, and what bounds it.

    ``bound``: a unit (tensor cores, arithmetic, exponentials, softmax), what feeds it (memory, L2 cache, shared memory,
    latency of loads), ``idle multiprocessors`` where the blocks are too few, or ``start and end`` where most time is
    beside the loop. ``parts``: gap, fill, loop, epilogue and exchange. ``floor``: of its bytes and operations at the
    card's full rates.
    """

    us: float
    bound: str
    floor: float
    parts: dict[str, float]

    @property
    def share(self) -> float:
        """How much of the modelled time the floor is: the share of the roofline that it reaches."""
        return self.floor / self.us


def rate(card: Card, engine: str, dtype: str) -> float:
    """Multiply-adds of a multiprocessor in a microsecond at full rate; of a type that it lacks, those of f16."""
    if engine == "ffma":
        return card.scalar / 2 / card.multiprocessors / 1e6
    return card.tensor.get(dtype, card.tensor["f16"]) / 2 / card.multiprocessors / 1e6


def reached(card: Card, engine: str) -> float:
    """The share of ``rate`` that an engine reaches, as a share of what wgmma does."""
    if engine == "ffma":
        return ORDINARY
    return MMA_ON_HOPPER if engine == "mma" and card.arch == "sm_90a" else 1.0


def full_rate(t: Tiling[int], card: Card) -> float:
    """Microseconds that all products of a kernel take at the card's full rate."""
    own = max(1, math.ceil(t.steps / t.split))
    return max(1, t.tiles * t.split) * own * t.macs / card.multiprocessors / rate(card, t.engine, t.dtype)


def slower(c: Constants, load: float) -> float:
    """How much longer everything takes on a hot card whose tensor cores keep up ``load``, a share of their full rate.

    At its limit of power a card lowers the clock. Power grows with a high power of the clock, as the voltage sinks too,
    so that little of the clock saves much of it.
    """
    return float(max(1.0, load / c.limit) ** c.sink)


def tiled_time(w: TiledWork, card: Card, c: Constants) -> Modelled:
    """The modelled time of a tiled kernel."""
    t, cycles, sms = w.tiling, card.clock / 1e6, card.multiprocessors  # cycles of a microsecond
    own = max(1, math.ceil(t.steps / t.split))
    blocks = max(1, t.tiles * t.split)
    rounds = math.ceil(blocks / sms)
    together = 1 if t.persistent else min(rounds, w.resident)
    waves = 1 if t.persistent else math.ceil(rounds / together)
    full = rate(card, t.engine, t.dtype)
    ideal = full_rate(t, card)
    tensor = reached(card, t.engine) * c.tensor
    step = {
        "arithmetic" if t.engine == "ffma" else "tensor cores": t.macs / (full * tensor),
        "shared memory": t.read / (c.shared * cycles),
        "L2 cache": t.loaded / (c.feed * cycles),
        "exponentials": t.exponents / (EXPONENTS * cycles),
        "softmax": t.exponents * c.score / rate(card, "ffma", "f32"),
    }
    bound = max(step, key=lambda name: step[name])
    busy = together * step[bound]
    waiting = c.latency / min(t.stages, own)
    alone = max(step[bound], waiting)
    if waiting > busy:
        bound = "latency"
    each = t.elements / 1e4 * (
        (c.stage if t.staged else c.store) + c.special * t.activation + c.other * t.residual
    )  # fmt: skip
    parts = {
        "gap": c.gap if w.chained else c.plain_gap,
        # blocks that follow others on a multiprocessor begin anew, while some of the others still compute
        "fill": (c.fill + c.cold * (1 - min(t.stages, own) / own)) * (1 + (waves - 1) * c.overlap),
        # blocks side by side share a multiprocessor; the longest one takes its own steps at least
        "loop": max(rounds / together * own * max(busy, waiting), (t.longest or 0) * alone),
        "epilogue": each * (1 + (rounds - 1) * c.overlap),
        "exchange": c.exchange + c.moved * t.elements / 1e4 * (t.split - 1) / t.split if t.split > 1 else 0.0,
    }
    us = sum(parts.values())
    warmth = ideal / (ideal + c.heat) if w.load is None else 1.0
    sunk = 1 + warmth * (slower(c, ideal / us if w.load is None else w.load) - 1)
    parts, us = {name: sunk * part for name, part in parts.items()}, sunk * us
    reading = (c.gap if w.chained else c.plain_gap) + w.nbytes / (card.memory * c.memory / 1e6)
    if reading > us:
        parts["loop"], us, bound = parts["loop"] + reading - us, reading, "memory"
    elif parts["loop"] < us / 2:
        bound = "start and end"
    elif blocks <= sms / 2:  # whatever bounds a block, more blocks would help
        bound = "idle multiprocessors"
    return Modelled(us, bound, max(w.nbytes / (card.memory / 1e6), ideal), parts)


def stream_time(w: StreamWork, card: Card, c: Constants) -> Modelled:
    """The modelled time of a kernel that memory bounds."""
    gap = c.gap if w.chained else c.plain_gap
    near = w.near if w.near <= card.l2 / 2 else 0.0
    moving = ((w.nbytes - near) / c.memory + near / c.cache) / (card.memory / 1e6)
    computing = w.operations / (card.scalar * ORDINARY / 1e6)
    if w.unpacked:
        unpacking = w.unpacked / (c.unpack * card.multiprocessors * card.clock / 1e6)
        computing = max(computing, c.begin + unpacking)
    loop = max(moving, computing)
    us = gap + c.stream + loop
    bound = "start and end" if loop < us / 2 else "memory" if moving >= computing else "arithmetic"
    floor = max(w.nbytes / (card.memory / 1e6), w.operations / (card.scalar / 1e6))
    return Modelled(us, bound, floor, {"gap": gap, "fill": c.stream, "loop": loop})
