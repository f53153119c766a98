"""The modelled time of one kernel, from what its source says: tiles, steps, bytes, and what a card does in a cycle.

A kernel's time is the gap behind its predecessor, the latency of its first loads, the main loop of the busiest
multiprocessor, its epilogues, and the exchange among blocks that share one tile; never less than its bytes need. The
constants are fitted to measured kernels (``calibrate.py``), within what the hardware can do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from arcweld.compiler.cards import Card

STEP_BYTES = 128  # of one row of k in a step: a swizzled line


@dataclass(frozen=True, slots=True)
class TiledWork:
    """A product, or a convolution as one, on tensor cores: blocks that multiply tiles step by step.

    tiles       tiles of the result; each is computed by ``split`` blocks, which share out its k
    bm, bn      rows and columns of a tile
    steps       steps of k of a tile, each ``STEP_BYTES`` of each row and column
    stages      steps whose loads may be under way at once
    a_share     of the bytes of a step's rows that are loaded: less than 1 where neighbouring steps share them
    persistent  each block takes several tiles, and stores one while the next one is multiplied
    resident    blocks that fit side by side on a multiprocessor
    staged      results are stored by TMA from shared memory, not by threads
    operations  special operations of the epilogue for each element (0: none, 1: an activation such as GELU)
    residual    the epilogue reads another tensor of the result's shape
    dtype       of the operands: ``f16`` (bf16 too), ``tf32``, ``f8``, ``i8``
    nbytes      of all operands and results, each counted once
    chained     it may begin while its predecessor ends (programmatic dependent launch)
    """

    tiles: int
    bm: int
    bn: int
    steps: int
    stages: int
    split: int = 1
    a_share: float = 1.0
    persistent: bool = False
    resident: int = 1
    staged: bool = False
    operations: float = 0.0
    residual: bool = False
    dtype: str = "f16"
    nbytes: float = 0.0
    chained: bool = True


@dataclass(frozen=True, slots=True)
class StreamWork:
    """A kernel that memory bounds: pointwise, row-wise, reducing, or a product of few rows.

    nbytes   that it reads and writes, each counted once
    threads  of all blocks together
    """

    nbytes: float
    threads: int
    chained: bool = True


@dataclass(frozen=True, slots=True)
class Constants:
    """What is fitted. Times are in microseconds, rates in shares of the card's own or in bytes a cycle.

    gap, plain_gap   between two kernels, with and without programmatic dependent launch
    fill             from a block's begin to its first operands, and from its last product to the end of its stores
    cold             of it, what is spent where not all operands are requested at once
    tensor, hot      shares of the tensor cores' rate in a main loop: of short kernels, and of those that last so long
                     that the clock sinks
    heat             microseconds of full rate after which half of that has happened
    shared           bytes a cycle that tensor cores read from shared memory
    feed             bytes a cycle that a multiprocessor gets from the L2 cache
    latency          of a step's loads, shared by those that are under way
    memory           share of the memory's bandwidth
    store, stage     an epilogue's time for 10,000 elements: stored by threads, or by TMA
    special, other   the same for special operations, and for reading another tensor
    overlap          share of an epilogue that later tiles of a multiprocessor cost
    exchange, moved  of blocks that share a tile, in all and for 10,000 elements
    stream           time of a memory-bound kernel beside its bytes and its gap
    """

    gap: float
    plain_gap: float
    fill: float
    cold: float
    tensor: float
    hot: float
    heat: float
    shared: float
    feed: float
    latency: float
    memory: float
    store: float
    stage: float
    special: float
    other: float
    overlap: float
    exchange: float
    moved: float
    stream: float


@dataclass(frozen=True, slots=True)
class Modelled:
    """Modelled microseconds of a kernel, and what bounds it.

    ``parts``: gap, fill, loop, epilogue and exchange; ``floor``: of its bytes and operations at the card's full rates.
    """

    us: float
    bound: str
    floor: float
    parts: dict[str, float]

    @property
    def share(self) -> float:
        """How much of the modelled time the floor is: the share of the roofline that it reaches."""
        return self.floor / self.us


def tensor_rate(card: Card, dtype: str) -> float:
    """Multiply-adds of a multiprocessor in a microsecond at full rate; of a type that it lacks, those of f16."""
    return card.tensor.get(dtype, card.tensor["f16"]) / 2 / card.multiprocessors / 1e6


def tiled_time(w: TiledWork, card: Card, c: Constants) -> Modelled:
    """The modelled time of a tiled product."""
    cycles = card.clock / 1e6  # in a microsecond
    sms = card.multiprocessors
    width = {"f16": 2, "tf32": 4}.get(w.dtype, 1)
    own = math.ceil(w.steps / w.split)
    blocks = w.tiles * w.split
    rounds = math.ceil(blocks / sms)
    together = 1 if w.persistent else min(rounds, w.resident)
    full = tensor_rate(card, w.dtype)
    macs = w.bm * w.bn * STEP_BYTES // width
    ideal = blocks * own * macs / sms / full
    warmth = ideal / (ideal + c.heat)
    step = {
        "tensor cores": macs / (full * (c.tensor + (c.hot - c.tensor) * warmth)),
        "shared memory": math.ceil(w.bm / 64) * (64 + w.bn) * STEP_BYTES / (c.shared * cycles),
        "L2 cache": (w.bm * w.a_share + w.bn) * STEP_BYTES / (c.feed * cycles),
    }
    bound = max(step, key=lambda name: step[name])
    waiting = c.latency / min(w.stages, own)
    if waiting > together * step[bound]:
        bound = "latency"
    loop = rounds / together * own * max(together * step[bound] if bound != "latency" else 0.0, waiting)
    elements = w.bm * w.bn / 1e4
    each = elements * (
        (c.stage if w.staged else c.store) + c.special * w.operations + (c.other if w.residual else 0.0)
    )
    parts = {
        "gap": c.gap if w.chained else c.plain_gap,
        "fill": c.fill + c.cold * (1 - min(w.stages, own) / own),
        "loop": loop,
        "epilogue": each * (1 + (rounds - 1) * c.overlap),
        "exchange": c.exchange + c.moved * elements * (w.split - 1) / w.split if w.split > 1 else 0.0,
    }
    us = sum(parts.values())
    reading = parts["gap"] + w.nbytes / (card.memory * c.memory / 1e6)
    if reading > us:
        parts["loop"], us, bound = parts["loop"] + reading - us, reading, "memory"
    elif loop < us / 2:
        bound = "start and end"
    floor = max(w.nbytes / (card.memory / 1e6), ideal)
    return Modelled(us, bound, floor, parts)


def stream_time(w: StreamWork, card: Card, c: Constants) -> Modelled:
    """The modelled time of a kernel that memory bounds."""
    gap = c.gap if w.chained else c.plain_gap
    moving = w.nbytes / (card.memory * c.memory / 1e6)
    us = gap + c.stream + moving
    bound = "memory" if moving > us / 2 else "start and end"
    return Modelled(us, bound, w.nbytes / (card.memory / 1e6), {"gap": gap, "fill": c.stream, "loop": moving})
