"""The pictures of a report, as SVG that HTML takes in: roofline, timeline and memory plan.

They are made as XML elements, so that whatever a name holds is escaped. Colours are classes, which the page's style
defines for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from arcweld.report.collect import Memory, Report, Row

WIDTH = 1000.0
LEFT, RIGHT = 64.0, 26.0  # margins
BAR, GAP = 40.0, 18.0  # of a line of the timeline
LINES = 6  # of the timeline, at most
PER_LINE = 40  # launches, before a timeline goes on in another line
HEIGHT = 420.0
TINTS = 6  # colours of tensors in the memory plan
LETTER = 6.6  # modelled width of a letter of the pictures' font


def bound_class(bound: str) -> str:
    """The class of the colour for what bounds a kernel: ``b-tensor-cores``."""
    return "b-" + bound.lower().replace(" ", "-")


def timeline(rows: Sequence[Row]) -> str:
    """Kernels in order, as wide as their modelled time is long; empty for no rows."""
    if not rows:
        return ""
    lines = _lines(rows)
    longest = max(sum(r.modelled_us for r in line) for line in lines)
    scale = (WIDTH - LEFT - RIGHT) / longest
    svg = _svg(len(lines) * (BAR + GAP) + GAP, "Kernels in order, as wide as their modelled time is long")
    begin = 0.0
    for k, line in enumerate(lines):
        y, x = GAP + k * (BAR + GAP), LEFT
        _add(svg, "text", f"{begin:.4g} us", x=LEFT - 6, y=y + BAR / 2 + 4, class_="end")
        for r in line:
            width = r.modelled_us * scale
            box = _add(_link(svg, r), "rect", x=x, y=y, width=max(width - 0.5, 0.3), height=BAR,
                       class_=bound_class(r.bound))  # fmt: skip
            _add(box, "title", _told(r))
            x += width
        begin += sum(r.modelled_us for r in line)
    _add(svg, "text", f"{begin:.4g} us", x=x + 4 if x < WIDTH - 70 else x, y=y + BAR + 13,
         class_="" if x < WIDTH - 70 else "end")  # fmt: skip
    return _text(svg)


def _lines(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in lines of about equal modelled time."""
    count = min(LINES, math.ceil(len(rows) / PER_LINE))
    most = sum(r.modelled_us for r in rows) / count
    lines: list[list[Row]] = [[]]
    taken = 0.0
    for r in rows:
        if taken >= most and len(lines) < count:
            lines.append([])
            taken = 0.0
        lines[-1].append(r)
        taken += r.modelled_us
    return lines


@dataclass(frozen=True, slots=True)
class _Axes:
    """Two logarithmic axes, from 10^x0 to 10^x1 and from 10^y0 to 10^y1."""

    x0: int
    x1: int
    y0: int
    y1: int

    def x(self, value: float) -> float:
        return LEFT + (math.log10(value) - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - 40 - (math.log10(value) - self.y0) / (self.y1 - self.y0) * (HEIGHT - 60)


def roofline(report: Report) -> str:
    """Operations per byte against modelled operations/s of all kernels that have both; empty where none has."""
    shown = [r for r in report.rows if r.flops > 0 and r.bytes > 0]
    if not shown:
        return ""
    at = {r.number: (r.flops / r.bytes, r.flops / r.modelled_us * 1e6) for r in shown}
    top = max(report.rates.values())
    axes = _Axes(
        math.floor(math.log10(min(0.1, *(x for x, _ in at.values())))),
        math.ceil(math.log10(max(top / report.memory_rate * 4, *(x for x, _ in at.values())))),
        math.floor(math.log10(min(y for _, y in at.values()))),
        math.ceil(math.log10(top * 1.01)),
    )
    svg = _svg(HEIGHT, "Operations per byte against modelled operations per second, with the card's limits")
    _grid(svg, axes)
    _limits(svg, axes, report)
    longest = max(r.modelled_us for r in shown)
    for r in sorted(shown, key=lambda r: -r.modelled_us):
        x, y = at[r.number]
        dot = _add(_link(svg, r), "circle", cx=axes.x(x), cy=axes.y(y), r=3 + 7 * math.sqrt(r.modelled_us / longest),
                   class_=f"dot {bound_class(r.bound)}")  # fmt: skip
        _add(dot, "title", _told(r))
    return _text(svg)


def _grid(svg: ET.Element, axes: _Axes) -> None:
    low, high = axes.y(10.0**axes.y0), axes.y(10.0**axes.y1)
    for k in range(axes.x0, axes.x1 + 1):
        x = axes.x(10.0**k)
        _add(svg, "line", x1=x, x2=x, y1=low, y2=high, class_="grid")
        _add(svg, "text", f"{10.0**k:g}", x=x, y=low + 15, class_="middle")
    for k in range(axes.y0, axes.y1 + 1):
        y = axes.y(10.0**k)
        _add(svg, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        _add(svg, "text", rate_text(10.0**k), x=LEFT - 6, y=y + 4, class_="end")
    _add(svg, "text", "operations per byte", x=(LEFT + WIDTH) / 2, y=HEIGHT - 8, class_="middle")
    _add(svg, "text", "modelled operations/s", x=4, y=12)


def _limits(svg: ET.Element, axes: _Axes, report: Report) -> None:
    """The slope of the memory up to the highest rate, and a level for each rate from the slope on."""
    top = max(report.rates.values())
    first = max(10.0**axes.x0, 10.0**axes.y0 / report.memory_rate)
    _add(svg, "line", x1=axes.x(first), y1=axes.y(first * report.memory_rate),
         x2=axes.x(top / report.memory_rate), y2=axes.y(top), class_="limit")  # fmt: skip
    levels: dict[float, list[str]] = {}
    for name, rate in report.rates.items():
        levels.setdefault(rate, []).append("f32, ordinary arithmetic" if name == "f32" else name)
    for rate, names in levels.items():
        if rate < 10.0**axes.y0:
            continue
        y = axes.y(rate)
        _add(svg, "line", x1=axes.x(max(rate / report.memory_rate, 10.0**axes.x0)), x2=WIDTH - RIGHT, y1=y, y2=y,
             class_="limit")  # fmt: skip
        _add(svg, "text", f"{', '.join(names)}: {rate_text(rate)}/s", x=WIDTH - RIGHT, y=y - 3, class_="end")


def memory_plan(memory: Memory) -> str:
    """What lies where in an arena (downwards) during which launches (to the right); empty for an empty arena."""
    if not memory.bytes or not memory.launches:
        return ""
    svg = _svg(HEIGHT, "Offsets in the arena against launches")
    step = (WIDTH - LEFT - RIGHT) / (memory.launches + 1)
    high = HEIGHT - 50
    for part in range(5):
        y = 10 + part / 4 * high
        _add(svg, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
        _add(svg, "text", bytes_short(memory.bytes * part / 4), x=LEFT - 6, y=y + 4, class_="end")
    for k, t in enumerate(memory.tensors):
        x, y = LEFT + t.first * step, 10 + t.offset / memory.bytes * high
        width, height = (t.last - t.first + 1) * step, max(t.bytes / memory.bytes * high, 0.5)
        box = _add(svg, "rect", x=x, y=y, width=max(width - 1, 0.5), height=height, class_=f"tensor m{k % TINTS}")
        _add(box, "title", f"{t.name}: {t.bytes:,} B at {t.offset:,}, launches {t.first} to {t.last}")
        if height > 13 and width > LETTER * (len(t.name) + 1):
            _add(svg, "text", t.name, x=x + 4, y=y + min(height / 2 + 4, 14), class_="in")
    every = max(1, math.ceil((memory.launches + 1) / 12))
    for k in range(0, memory.launches + 1, every):
        _add(svg, "text", str(k), x=LEFT + (k + 0.5) * step, y=high + 24, class_="middle")
    _add(svg, "text", "launch", x=(LEFT + WIDTH) / 2, y=HEIGHT - 8, class_="middle")
    return _text(svg)


def rate_text(n: float) -> str:
    """A number of operations with its prefix: ``989 T``."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size * 0.9995:
            return f"{n / size:.3g} {prefix}"
    return f"{n:.3g}"


def bytes_short(n: float) -> str:
    """A number of bytes in three digits: ``26.5 kB``."""
    return f"{rate_text(n)}B" if n >= 1000 else f"{n:.0f} B"


def _told(r: Row) -> str:
    return (
        f"#{r.number} {r.kernel}: modelled {r.modelled_us:.4g} us, {100 * r.share:.0f} % of the roofline, bound by "
        f"{r.bound}; {', '.join(r.nodes[:6])}{' ...' if len(r.nodes) > 6 else ''}"
    )


def _svg(height: float, title: str) -> ET.Element:
    return ET.Element("svg", {"viewBox": f"0 0 {WIDTH:g} {height:g}", "role": "img", "aria-label": title})


def _link(parent: ET.Element, r: Row) -> ET.Element:
    return _add(parent, "a", href=f"#k{r.number}")


def _add(parent: ET.Element, tag: str, text: str = "", **attributes: str | float) -> ET.Element:
    values = {
        n.rstrip("_"): v if isinstance(v, str) else f"{v:.1f}".removesuffix(".0") for n, v in attributes.items()
    }
    element = ET.SubElement(parent, tag, values)
    element.text = text or None
    return element


def _text(svg: ET.Element) -> str:
    return ET.tostring(svg, encoding="unicode", short_empty_elements=False)
