"""What a report shows, as plain data: an engine's kernels with their modelled times, its memory and its evidence.

Names come from files that may be hostile: control characters in them are replaced here, markup where the page is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from arcweld.codegen.cost.occupancy import occupancy
from arcweld.compiler.logs import printable
from arcweld.driver.estimate import LaunchEstimate
from arcweld.driver.summary import host_text, kernels_text, verified_kernels
from arcweld.report.timeline import Timeline
from arcweld.runtime.cubin import registers
from arcweld.runtime.engine_file import EngineData
from arcweld.runtime.kernels import binary_archs


@dataclass(frozen=True, slots=True)
class Row:
    """One launch. Times are modelled microseconds but for ``measured_us``, which is None where nothing was measured;
    ``share`` is the share of the roofline, from 0 to 1.

    ``verified`` says what became of its kernel's verification, ``multiplies`` what multiplies in it (``wgmma f16``).
    ``registers`` are those of a thread, as the object code has them that the card would load, and ``occupancy`` the
    share of a multiprocessor's warps that fit side by side; None where there is no such code.
    """

    number: int
    stage: int
    name: str
    kernel: str
    template: str
    nodes: tuple[str, ...]
    bytes: float
    flops: float
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    modelled_us: float
    floor_us: float
    share: float
    bound: str
    gain_us: float
    multiplies: str
    types: tuple[str, ...]
    verified: str
    measured_us: float | None = None
    registers: int | None = None
    occupancy: float | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in an arena: bytes from ``offset`` on, from launch ``first`` to launch ``last``."""

    name: str
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Memory:
    """The arena of a stage, with the number of launches of the stage."""

    bytes: int
    launches: int
    tensors: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a report shows, but for the kernels' texts. Rates are bytes/s and operations/s.

    file, name   the file's name without its folder, and that of the graph
    kind         ``engine``, or ``model`` for a model that was not built
    rates        the card's operations/s: ``f32`` of ordinary arithmetic, others of tensor cores by operand type
    evidence     what verification found, in sentences
    precision    what is computed in which type, in sentences
    steps        what the host does, line by line; empty where all is one stage
    refusals     fusions that were refused, with the reasons; None where nobody knows them
    beside       what is not in the modelled time
    measured     where and how kernels were measured, in a few words; empty where nothing was
    other_us     the measured microseconds of what has no row: the host's steps, launches for sizes that data decided
    """

    file: str
    name: str
    kind: str
    card: str
    memory_rate: float
    rates: Mapping[str, float]
    sizes: Mapping[str, int]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    provenance: Mapping[str, str]
    kernels_text: str
    host_text: str
    modelled_us: float
    floor_us: float
    weight_bytes: int
    workspace_bytes: int
    verified_kernels: int
    distinct_kernels: int
    evidence: tuple[str, ...]
    precision: tuple[str, ...]
    steps: tuple[str, ...]
    refusals: tuple[str, ...] | None
    beside: tuple[str, ...]
    rows: tuple[Row, ...]
    memory: tuple[Memory, ...]
    modelled: bool = field(default=True)
    measured: str = ""
    other_us: float = 0.0

    @property
    def measured_us(self) -> float:
        """The microseconds of all that was measured, one after another."""
        return self.other_us + sum(r.measured_us or 0.0 for r in self.rows)


def collect(
    file: str, data: EngineData, times: Timeline, *, steps: Sequence[str] = (),
    refusals: Sequence[str] | None = None, precision: str = "",
) -> Report:  # fmt: skip
    """The report on an engine, or on a model that is planned only: then ``precision`` is what it was planned in.

    ``file``, ``steps`` and ``refusals`` are as in ``Report``. ``times`` has the estimate of the call,
    and measured times where there are some.
    """
    program, estimate, card = data.program, times.estimate, times.estimate.card
    found = {} if precision else _verified(data)
    rows = tuple(
        _row(k, x, "not built" if precision else found.get(x.source, "not verified"), times, data)
        for k, x in enumerate(estimate.launches)
    )
    return Report(
        file=printable(file), name=printable(program.name), kind="model" if precision else "engine",
        card=printable(card.title), memory_rate=card.memory, rates={"f32": card.scalar, **card.tensor},
        sizes={printable(n): v for n, v in estimate.sizes.items()},
        inputs={printable(t.name): _type(t.dtype, t.shape) for t in program.inputs},
        outputs={printable(t.name): _type(t.dtype, t.shape) for t in program.outputs},
        provenance={printable(k): printable(v) for k, v in sorted(data.provenance.items())},
        kernels_text=kernels_text(data), host_text=printable(host_text(data)) if program.steps else "",
        modelled_us=estimate.seconds * 1e6, floor_us=estimate.floor_seconds * 1e6,
        weight_bytes=estimate.weights, workspace_bytes=estimate.workspace,
        verified_kernels=len(verified_kernels(data)), distinct_kernels=len(data.sources),
        evidence=_evidence(data, bool(precision)), precision=_precision(data, rows, precision),
        steps=tuple(map(printable, steps)),
        refusals=None if refusals is None else tuple(map(printable, refusals)),
        beside=estimate.beside, rows=rows,
        memory=tuple(
            Memory(a.nbytes, a.launches, tuple(
                Held(printable(t.name), t.offset, t.nbytes, t.first, t.last) for t in a.temporaries
            ))
            for a in estimate.arenas
        ),
        measured=times.times if times.count else "",
        other_us=sum(s.us for s in times.slices if s.launch is None),
    )  # fmt: skip


def _row(number: int, x: LaunchEstimate, verified: str, times: Timeline, data: EngineData) -> Row:
    m, own = x.modelled, times.by_name.get(printable(x.name)) if times.count else None
    arch = times.estimate.card.arch
    used = _registers(data, x.source, arch)
    return Row(
        number, x.stage, printable(x.name), x.source, printable(x.template), tuple(map(printable, x.origin)), x.nbytes,
        x.flops, x.grid, x.block, x.shared_bytes, m.us, m.floor, m.share, m.bound, m.us - m.floor, x.multiplies,
        x.types, verified, None if own is None else own.us,
        used, None if used is None else occupancy(used, x.shared_bytes, math.prod(x.block), arch),
    )  # fmt: skip


def _registers(data: EngineData, kernel: str, arch: str) -> int | None:
    """Registers of a thread in the object code that a card of architecture ``arch`` would load."""
    for fit in binary_archs([a for a, name in data.cubins if name == kernel], arch):
        return registers(data.cubins[fit, kernel])
    return None


def _verified(data: EngineData) -> dict[str, str]:
    """What the evidence says of each kernel that it names: its largest error, or why it was not compared."""
    found = dict.fromkeys(verified_kernels(data), "verified with the launch that it prepares")
    errors: dict[str, float] = {}
    for k in (data.verify or {}).get("kernels", ()):
        kernel, error = k["kernel"], k.get("error")
        if k["status"] == "verified":
            if isinstance(error, int | float):
                errors[kernel] = max(errors.get(kernel, 0.0), float(error))
            found[kernel] = f"verified, error {errors[kernel]:.1e}" if kernel in errors else "verified"
        else:
            found.setdefault(kernel, printable(f"{k['status']}: {k['reason']}" if k.get("reason") else k["status"]))
    return found


def _evidence(data: EngineData, is_model: bool) -> tuple[str, ...]:
    if is_model:
        return ("Nothing was built, so nothing was verified.",)
    evidence = data.verify
    if evidence is None or evidence["level"] == "off":
        return ("The build was not verified.",)
    found = [f"Verified ({evidence['level']}) on {evidence.get('device') or 'an unnamed device'}."]
    for o in evidence["outputs"]:
        error, tolerance = o.get("error"), o.get("tolerance")
        detail = f"error {error:.2e}" if error is not None else o.get("reason", "")
        allowed = f" of {tolerance:.0e} allowed" if error is not None and tolerance is not None else ""
        found.append(f"Output {o['output']}: {o['status']}, {detail}{allowed}.")
    if evidence.get("replaced"):
        found.append(f"Weights replaced since: {', '.join(evidence['replaced'])}.")
    return tuple(map(printable, found))


def _precision(data: EngineData, rows: Sequence[Row], asked: str) -> tuple[str, ...]:
    """What multiplies in which types, by their shares of all operations, and the nodes that stayed in f32."""
    flops: dict[str, float] = {}
    for r in rows:
        kind = r.multiplies or "ordinary arithmetic, without tiles"
        flops[kind] = flops.get(kind, 0.0) + r.flops
    total = sum(flops.values())
    found = [f"Planned in {asked}, without the nodes that verification would keep in f32."] if asked else []
    found += [
        f"{100 * part / total:.1f} % of the operations: {kind}."
        for kind, part in sorted(flops.items(), key=lambda x: (-x[1], x[0])) if part
    ]  # fmt: skip
    promotion: Any = (data.verify or {}).get("promotion")
    if isinstance(promotion, Mapping) and isinstance(promotion.get("f32"), list):
        kept = ", ".join(map(str, promotion["f32"]))
        found.append(f"Nodes that stayed in f32: {kept or 'none'}.")
    return tuple(map(printable, found))


def _type(dtype: str, shape: Sequence[str]) -> str:
    return printable(f"{dtype}[{', '.join(shape)}]")
