"""Renders a report as one HTML page without references to anything outside of it.

The page's own script is the only one that may run: the policy in its head names the script's hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

import jinja2

from arcweld.driver.summary import bytes_text
from arcweld.report.collect import Report, Row
from arcweld.report.draw import bound_class, bytes_short, memory_plan, rate_text, roofline, timeline

HERE = Path(__file__).parent
MOST_BYTES = 1_000_000  # of a page, as long as its table alone has no more
MEASURED = ("measured us", "n")  # the column behind the modelled time, where kernels were measured
# of the table of kernels: titles, and whether a column is ordered by number (n) or by text (t)
COLUMNS = (
    ("#", "n"), ("kernel", "t"), ("model nodes", "t"), ("modelled us", "n"), ("share of roofline", "n"),
    ("largest gain, us", "n"), ("bound by", "t"), ("bytes", "n"), ("FLOPs", "n"), ("grid", "t"), ("block", "t"),
    ("shared memory", "n"), ("registers", "n"), ("occupancy", "n"), ("types", "t"), ("verification", "t"),
)  # fmt: skip
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>&'\u2028\u2029"}


@cache
def _page() -> jinja2.Template:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"bytes": bytes_text, "short": bytes_short, "rate": rate_text, "bound": bound_class}
    return made.get_template("page.html.j2")


def render(report: Report, sources: Mapping[str, str]) -> str:
    """The page with as many of the kernels' CUDA texts as fit ``MOST_BYTES``; it says which are left out."""
    names = list(dict.fromkeys(r.kernel for r in report.rows))
    bare = _rendered(report, dict.fromkeys(names))
    room = MOST_BYTES - len(bare.encode())
    texts: dict[str, str | None] = {}
    for name in names:
        size = len(html.escape(sources[name]).encode())
        texts[name] = sources[name] if size <= room else None
        room -= size if size <= room else 0
    return _rendered(report, texts)


def _rendered(report: Report, texts: Mapping[str, str | None]) -> str:
    script, style = (_own(name) for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    first: dict[str, int] = {}
    stages: dict[int, list[Row]] = {}
    for r in report.rows:
        first.setdefault(r.kernel, r.number)
        stages.setdefault(r.stage, []).append(r)
    sizes = ", ".join(f"{n}={v}" for n, v in report.sizes.items())
    verified = f"{report.verified_kernels} of {report.distinct_kernels}" if report.kind == "engine" else "not built"
    return _page().render(
        columns=(*COLUMNS[:4], MEASURED, *COLUMNS[4:]) if report.measured else COLUMNS,
        sizes=f", at {sizes}" if sizes else "", verified=verified,
        share=100 * report.floor_us / report.modelled_us, report=report, texts=texts, first=first,
        data=_json(report), script=script, style=style, digest=digest,
        roofline=roofline(report), bounds=sorted({r.bound for r in report.rows}),
        timelines=[(k, timeline(rows)) for k, rows in sorted(stages.items())],
        memories=[(k, m, memory_plan(m)) for k, m in enumerate(report.memory)],
    )  # fmt: skip


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _json(report: Report) -> str:
    """The report as JSON that ends no script element, whatever names hold."""
    return json.dumps(asdict(report), ensure_ascii=False, allow_nan=False, sort_keys=True).translate(_ESCAPED)
