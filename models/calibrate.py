"""Fits the model of time to measured kernels: ``python -m arcweld.models.calibrate`` writes ``codegen/cost/fitted.py``.

The measurements are the files ``docs/benchmarks/kernels-*.json``. The error is judged on problems that the fit has not
seen: it is repeated without each problem (``held_out``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from arcweld.codegen.cost.model import Constants, StreamWork, TiledWork, full_rate, stream_time, tiled_time
from arcweld.compiler.cards import Card, card
from arcweld.compiler.tiling import Tiling

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "docs" / "benchmarks"
FITTED = ROOT / "codegen" / "cost" / "fitted.py"
Fitted = Mapping[str, Constants]
SHARED = 227 * 1024  # bytes of a multiprocessor that blocks share
PRIOR = 0.01  # weight of a constant's distance from where the fit begins
STARTS = 12  # points from which a fit begins that knows no earlier one
LINE = 128  # bytes of k of a row in one step
SCRATCH = 8192  # bytes of shared memory beside the stages
# Where the fit begins, and the least and most that the hardware allows. Kernels that do nothing take 0.75 us with
# programmatic dependent launch, and 1.25 us without.
START: Mapping[str, tuple[float, float, float]] = {
    "gap": (0.6, 0.2, 0.75), "plain_gap": (1.25, 1.0, 3.0), "fill": (0.9, 0.3, 2.0), "cold": (0.5, 0.0, 2.0),
    "tensor": (0.85, 0.5, 1.0), "limit": (0.28, 0.1, 0.5), "sink": (0.1, 0.02, 0.4), "heat": (100.0, 20.0, 400.0),
    "shared": (100.0, 60.0, 128.0), "feed": (45.0, 20.0, 64.0), "latency": (0.4, 0.1, 1.5), "memory": (0.88, 0.7, 0.95),
    "store": (0.9, 0.05, 4.0), "stage": (0.4, 0.05, 4.0), "special": (0.7, 0.05, 4.0), "other": (0.4, 0.05, 4.0),
    "overlap": (0.2, 0.02, 1.0), "exchange": (0.8, 0.1, 3.0), "moved": (1.5, 0.1, 5.0), "stream": (0.6, 0.05, 3.0),
    "cache": (1.6, 0.9, 2.5), "score": (12.0, 6.0, 20.0), "unpack": (24.0, 8.0, 64.0), "begin": (2.0, 0.3, 3.0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One measured kernel: the problem that it solves, how, and microseconds.

    ``us``: on a cool card, less the kernel's share of its graph's beginning. ``hot``: on one that it has heated; 0: not
    measured.
    """

    kind: str
    problem: str
    how: str
    work: TiledWork | StreamWork
    us: float
    hot: float = 0.0

    def modelled(self, on: Card, fitted: Fitted) -> float:
        """Modelled microseconds."""
        return _us(self, on, fitted[self.kind])

    def under(self, load: float) -> Row:
        """The row in a chain that keeps up ``load`` (``TiledWork``)."""
        if not isinstance(self.work, TiledWork):
            return self
        return dataclasses.replace(self, work=dataclasses.replace(self.work, load=load))


def _us(row: Row, on: Card, constants: Constants) -> float:
    if isinstance(row.work, TiledWork):
        return tiled_time(row.work, on, constants).us
    return stream_time(row.work, on, constants).us


def measured(path: Path) -> tuple[Card, list[Row]]:
    """The card and the kernels of a file of measurements."""
    data = json.loads(path.read_text(encoding="utf-8"))
    rows = [_cool(make(r), r, data["graph_us"]) for kind, make in KINDS.items() for r in data[kind]]
    return card(data["card"]), rows


def _cool(row: Row, r: Mapping[str, Any], beginning: float) -> Row:
    """The row without its share of the ``beginning`` of its graph, in microseconds; with both times if it has two."""
    own = row if "hot_us" not in r else dataclasses.replace(row.under(0.0), hot=r["hot_us"])
    return dataclasses.replace(own, us=row.us - beginning / r["launches"] if "launches" in r else row.us)


def _product(r: Mapping[str, Any]) -> Row:
    m, n, k = r["m"], r["n"], r["k"]
    bm, bn = r["tile"]
    tiling = _tiling(r, -(-m // bm) * -(-n // bn), -(-k // 64), "GELU" in r["epilogue"])
    work = TiledWork(tiling, _resident(bm, bn, r["stages"]), 2.0 * (m * k + n * k + m * n), r["chained"])
    problem = f"{m} x {n} x {k}, {r['epilogue']}{'' if r['chained'] else ', alone'}"
    return Row("product", problem, _how(r) + ("g" if r["groups"] > 1 else ""), work, r["us"])


def _convolution(r: Mapping[str, Any]) -> Row:
    (bm, bn), (h, w) = r["tile"], r["out"]
    pixels, taps = r["batch"] * h * w, r["filter"] ** 2
    tiling = _tiling(r, -(-r["row_tiles"] // (bm // 64)) * -(-r["k"] // bn), -(-r["c"] // 64) * taps, False)
    if r["halo"]:  # three steps of a column's taps share ten rows of pixels, and a stage holds all three
        tiling = replace(tiling, stages=3 * r["stages"], loaded=int(bm * LINE * 10 / 24) + bn * LINE)
    resident = min(r["resident"], _resident(bm, bn, r["stages"] * (2 if r["halo"] else 1)))
    results = pixels * r["k"] * (2 if r["residual"] else 1)
    nbytes = 2.0 * (pixels * r["stride"] ** 2 * r["c"] + r["k"] * r["c"] * taps + results)
    problem = (
        f"{r['batch']} x {h} x {w}, {r['filter']} x {r['filter']} / {r['stride']}, {r['c']} to {r['k']}"
        + (", residual" if r["residual"] else "")
    )  # fmt: skip
    work = TiledWork(tiling, resident, nbytes)
    return Row("convolution", problem, _how(r) + ("h" if r["halo"] else ""), work, r["us"])


def _tiling(r: Mapping[str, Any], tiles: int, steps: int, activation: bool) -> Tiling[int]:
    """The tiles of a measured kernel, each step of which takes ``LINE`` bytes of every row and column."""
    (bm, bn), groups = r["tile"], r.get("groups", 1)
    line = LINE * groups  # parts of a block that share out k take as many steps at once
    return Tiling(
        "wgmma", "f16", tiles, -(-steps // groups), r["stages"], macs=bm * bn * line // 2, loaded=(bm + bn) * line,
        read=bm // 64 * (64 + bn) * line, elements=bm * bn, split=r["split"], activation=activation,
        residual=r.get("residual", False), persistent=r.get("persistent", r["staged"]), staged=r["staged"],
    )  # fmt: skip


def _stream(r: Mapping[str, Any]) -> Row:
    work = StreamWork(r["mb"] * 1e6, unpacked=r.get("unpacked", 0.0) * 1e6, chained=r["chained"])
    return Row("stream", f"{r['what']}, {r['mb']:.1f} MB", "chained" if r["chained"] else "alone", work, r["us"])


def _rows(r: Mapping[str, Any]) -> Row:
    work = StreamWork(r["mb"] * 1e6, r["mb"] * 1e6)
    return Row("rows", f"{r['what']}, {r['mb']:.2f} MB", "chained", work, r["us"])


def _attention(r: Mapping[str, Any]) -> Row:
    (rows, keys), depth, engine = r["tile"], 2 * r["size"], r.get("engine", "wgmma")
    readers = max(1, rows // (64 if engine == "wgmma" else 16))  # warpgroups, or warps, that read each tile of keys
    heads, steps = r["batch"] * r["heads"], -(-r["keys"] // keys)
    tiling = Tiling(
        engine, "f16", heads * -(-r["queries"] // rows), steps // 2 + 1 if r["causal"] else steps, r["stages"],
        macs=rows * keys * depth, loaded=keys * depth * 2, read=readers * keys * depth * 2,
        elements=rows * r["size"], exponents=rows * keys, persistent=r["persistent"],
        longest=steps if r["causal"] else None,
    )  # fmt: skip
    nbytes = 2.0 * heads * r["size"] * 2 * (r["queries"] + r["keys"])
    problem = f"{r['batch']} x {r['heads']} x {r['queries']} x {r['size']}{', causal' if r['causal'] else ''}"
    kind = "attention" if engine == "wgmma" else "attention_mma"
    return Row(kind, problem, f"{rows}x{keys}/{r['stages']}", TiledWork(tiling, r["resident"], nbytes), r["us"])


def _decode(r: Mapping[str, Any]) -> Row:
    """Attention of one query of each head to a cache; ``cached``: which was in the L2 cache."""
    nbytes = 2.0 * 2 * r["batch"] * r["heads"] * r["keys"] * r["size"]
    work = StreamWork(nbytes, nbytes if r.get("cached") else 0.0, chained=r["chained"])
    problem = f"{r['batch']} x {r['heads']} x {r['keys']} keys x {r['size']}"
    return Row("decode", problem, "chained" if r["chained"] else "alone", work, r["us"])


# how each list of a file of measurements is read
KINDS: Mapping[str, Callable[[Mapping[str, Any]], Row]] = {
    "products": _product, "convolutions": _convolution, "streams": _stream, "rows": _rows, "attention": _attention,
    "decode": _decode,
}  # fmt: skip


def _resident(bm: int, bn: int, stages: int) -> int:
    return max(1, min(SHARED // (stages * (bm + bn) * 128 + SCRATCH), 4))


def _how(r: Mapping[str, Any]) -> str:
    bm, bn = r["tile"]
    split = f"k{r['split']}" if r["split"] > 1 else ""
    return f"{bm}x{bn}/{r['stages']}{split}{'t' if r['staged'] else ''}"


# --------------------------------------------------------------------------------------------------------- the fit


def fit(rows: Sequence[Row], on: Card, start: Fitted | None = None) -> Fitted:
    """The constants for each kind of kernel; those of memory-bound ones are products'."""
    begin = start or {}
    limit, sink = _fit_clock(rows, on)

    def of(*kinds: str) -> Constants:
        known = begin.get(kinds[0])
        return _fit([r for r in rows if r.kind in kinds], on, known, limit, sink)

    products = of("product", "stream")
    return {
        "product": products, "stream": products, "convolution": of("convolution"),
        "rows": of("rows"), "attention": of("attention"), "attention_mma": of("attention_mma"), "decode": of("decode"),
    }  # fmt: skip


def _fit_clock(rows: Sequence[Row], on: Card) -> tuple[float, float]:
    """``limit`` and ``sink`` of the clock, from kernels that were measured on a cool card and on a hot one."""
    from scipy.optimize import least_squares

    both = [r for r in rows if r.hot and isinstance(r.work, TiledWork)]
    load = np.array([full_rate(r.work.tiling, on) / r.us for r in both if isinstance(r.work, TiledWork)])
    longer = np.log([r.hot / r.us for r in both])
    names = ("limit", "sink")
    begin, *bounds = (np.array([START[n][k] for n in names]) for k in range(3))
    found = least_squares(lambda p: p[1] * np.log(np.maximum(1, load / p[0])) - longer, begin, bounds=bounds)
    return float(f"{found.x[0]:.4g}"), float(f"{found.x[1]:.4g}")


def _fit(rows: Sequence[Row], on: Card, start: Constants | None, limit: float, sink: float) -> Constants:
    """The constants with the least sum of (softly limited) squares of the logarithms of modelled by measured time.

    Those which the rows do not tell stay where the fit begins: each deviation costs a little.
    """
    from scipy.optimize import least_squares

    clock = {"limit": limit, "sink": sink}
    names = [n for n in START if n not in clock]
    low, high = (np.log([max(START[n][k], 1e-3) for n in names]) for k in (1, 2))
    middle = np.log([getattr(start, n) if start else START[n][0] for n in names])
    us = np.log([r.us for r in rows])
    # problems of which many tactics were measured count as much as others
    count: dict[str, int] = {}
    for r in rows:
        count[r.problem] = count.get(r.problem, 0) + 1
    weight = np.array([count[r.problem] ** -0.5 for r in rows])
    usual = np.log([START[n][0] for n in names])

    def errors(point: np.ndarray) -> np.ndarray:
        constants = Constants(**dict(zip(names, np.exp(point).tolist())), **clock)
        found = weight * (np.log([_us(r, on, constants) for r in rows]) - us)
        return np.concatenate([found, PRIOR * (point - usual)])

    draw = np.random.default_rng(0)
    steps = [np.zeros(len(names)), *(draw.normal(0, 0.4, len(names)) for _ in range(0 if start else STARTS - 1))]
    begins = [(middle + step).clip(low + 1e-6, high - 1e-6) for step in steps]
    tried = [
        least_squares(errors, b, bounds=(low, high), loss="soft_l1", f_scale=0.05, diff_step=1e-3) for b in begins
    ]  # the sum has several minima
    found = min(tried, key=lambda t: t.cost)
    return Constants(**{n: float(f"{x:.4g}") for n, x in zip(names, np.exp(found.x))}, **clock)


@dataclass(frozen=True, slots=True)
class Choice:
    """The tactic of a problem that the model puts first, beside the one that was measured to be the best."""

    problem: str
    best: Row
    chosen: Row

    @property
    def behind(self) -> float:
        """How much longer the chosen one takes."""
        return self.chosen.us / self.best.us - 1


def choices(rows: Sequence[Row], on: Card, constants: Fitted) -> list[Choice]:
    """For each problem of which several tactics were measured, what the model chooses."""
    return [
        Choice(
            problem, min(own, key=lambda r: r.us), min(own, key=lambda r: r.modelled(on, constants))
        )
        for problem, own in by_problem(rows).items() if len(own) > 1
    ]  # fmt: skip


def by_problem(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each problem."""
    found: dict[str, list[Row]] = {}
    for r in rows:
        found.setdefault(f"{r.kind} {r.problem}", []).append(r)
    return found


def relative_errors(rows: Sequence[Row], on: Card, constants: Fitted) -> list[float]:
    """|modelled / measured - 1| of each row."""
    return [abs(r.modelled(on, constants) / r.us - 1) for r in rows]


def held_out(rows: Sequence[Row], on: Card, start: Fitted, parts: int) -> Iterator[tuple[list[Row], Fitted]]:
    """Parts of the problems, each with constants that were fitted without them."""
    problems = sorted(by_problem(rows))
    for k in range(parts):
        out = set(problems[k::parts])
        own = [r for r in rows if f"{r.kind} {r.problem}" in out]
        yield own, fit([r for r in rows if f"{r.kind} {r.problem}" not in out], on, start)


def report(rows: Sequence[Row], on: Card, constants: Fitted) -> str:
    """The errors and choices by kind of kernel, as text."""
    lines = []
    for kind in dict.fromkeys(r.kind for r in rows):
        own = [r for r in rows if r.kind == kind]
        errors = np.array(relative_errors(own, on, constants))
        made = choices(own, on, constants)
        first = sum(c.behind == 0 for c in made)
        worst = max((c.behind for c in made), default=0.0)
        lines.append(
            f"{kind}: {len(own)} kernels, median error {np.median(errors):.1%}, nine of ten within "
            f"{np.quantile(errors, 0.9):.1%}; best first {first} of {len(made)}, at worst {worst:.1%} behind"
        )
    return "\n".join(lines)


def write(fitted: Fitted, path: Path = FITTED) -> None:
    """Writes the module that holds the constants."""
    names = {id(c): k.upper() for k, c in reversed([*fitted.items()])}
    text = [
        '"""The constants of the model of time, fitted by ``arcweld.models.calibrate``; not written by hand."""\n\n',
        "from __future__ import annotations\n\nfrom arcweld.codegen.cost.model import Constants\n\n",
    ]
    for constants in {id(c): c for c in fitted.values()}.values():
        values = "\n".join(f"    {f.name}={getattr(constants, f.name)!r}," for f in fields(Constants))
        text.append(f"{names[id(constants)]} = Constants(\n{values}\n)\n")
    entries = "".join(f'    "{kind}": {names[id(c)]},\n' for kind, c in fitted.items())
    text.append(f"FITTED = {{\n{entries}}}\n")
    path.write_text("".join(text), encoding="utf-8")


def main() -> None:
    """Fits, prints the errors with and without held-out problems, and writes the constants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", type=int, default=8, help="how many times problems are held out")
    options = parser.parse_args()
    (path,) = sorted(MEASURED.glob("kernels-*.json"))
    on, rows = measured(path)
    fitted = fit(rows, on)
    print(report(rows, on, fitted))
    errors = [e for own, c in held_out(rows, on, fitted, options.parts) for e in relative_errors(own, on, c)]
    print(f"held out: median error {np.median(errors):.1%}, nine of ten within {np.quantile(errors, 0.9):.1%}")
    write(fitted)


if __name__ == "__main__":
    main()
