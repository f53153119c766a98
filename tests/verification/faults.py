"""Faults to inject into rendered kernels, as edits of their text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """An edit: the first match of ``pattern`` (a regular expression) becomes ``replacement``, as ``re.sub`` takes them.

    ``kind`` says what is broken.
    """

    kind: str
    name: str
    pattern: str
    replacement: str | Callable[[re.Match[str]], str]


def plus(change: int) -> Callable[[re.Match[str]], str]:
    """A replacement that adds to the number in the second group, after the first."""
    return lambda m: f"{m[1]}{int(m[2]) + change}"


def half_the_lanes(m: re.Match[str]) -> str:
    """A reduction over half as many lanes."""
    return f"lanes_reduce<{max(1, int(m[1]) // 2)}>"


FAULTS = [
    # arithmetic
    Fault("arithmetic", "plus becomes minus", r"(const (?:f32|i32) t\d+ = [\w.\[\]]+) \+ (\w)", r"\1 - \2"),
    Fault("arithmetic", "product loses a factor", r"(const (?:f32|i32) t\d+ = )([\w.]+) \* [\w.]+;", r"\1\2;"),
    Fault("arithmetic", "accumulates the negative", r"\+= x\[e\] \* w", "-= x[e] * w"),
    Fault("arithmetic", "keeps the first term only", r"k < K; k \+= STRIDE", "k < start + 1; k += STRIDE"),
    Fault("arithmetic", "negation lost", r"= -(t\d+);", r"= \1;"),
    Fault("arithmetic", "other comparison", r"max_nan\((\w+), ", r"min_nan(\1, "),
    Fault("arithmetic", "other reduction", r"\bOpMax\b", "OpMin"),
    Fault("arithmetic", "sum becomes maximum", r"\bOpSum\b", "OpMax"),
    # epilogues and activations
    Fault("activation", "Relu dropped", r"max_nan\((\w+), 0\.0f\)", r"\1"),
    Fault("activation", "Abs dropped", r"fabsf\((\w+)\)", r"\1"),
    Fault("activation", "upper clip dropped", r"min_nan\((\w+), [\w.\-]+\)", r"\1"),
    Fault("epilogue", "bias dropped", r"(acc\[\w+\]) \+ t\d+;", r"\1;"),
    Fault("epilogue", "bias of the neighbour", r"p\.in2 \+ n\)", "p.in2 + (n ^ 8))"),
    Fault("epilogue", "bias read at column 0", r"p\.in2\[n\]", "p.in2[0]"),
    # pitches and strides
    Fault("pitch", "output pitch", r"(p\.out0(?:\[| \+ \()[^;\n]*?\* )(\d{2,})", plus(1)),
    Fault("pitch", "input pitch", r"(p\.in0(?:\[| \+ \()[^;\n]*?\* )(\d{2,})", plus(-1)),
    Fault("pitch", "second operand's pitch", r"(p\.in1(?:\[| \+ \()[^;\n]*?\* )(\d{2,})", plus(2)),
    Fault("stride", "block stride", r"(blockIdx\.x \* )(\d+)", plus(-1)),
    Fault("stride", "tile pitch in shared memory", r"row \* (\d+) \+ column", r"row * (\1 - 1) + column"),
    Fault("stride", "loop stride", r"STRIDE = SPLIT \* BK;", "STRIDE = SPLIT * BK + 1;"),
    # tile offsets
    Fault("offset", "tile's row offset lost", r"t\.m \+ (row|Work)", r"\1"),
    Fault("offset", "tile's column offset lost", r"t\.n \+ (column|Work)", r"\1"),
    Fault("offset", "operand's row offset lost", r"a\.fetch\((p, (?:base[^,]*, )?)t\.b, t\.m", r"a.fetch(\1t.b, 0"),
    Fault("offset", "operand's column offset lost", r"b\.fetch\((p, (?:base[^,]*, )?)t\.b, t\.n", r"b.fetch(\1t.b, 0"),
    Fault("offset", "tile index along a", r"a0 = blockIdx\.x % tiles_a \* \d+", "a0 = 0"),
    Fault("offset", "outer index lost", r"outer = blockIdx\.x / tiles_a / tiles_b", "outer = 0"),
    Fault("offset", "head index", r"h = blockIdx\.x / (\w[\w.]*) %", r"h = blockIdx.x / (\1 + 1) %"),
    Fault("offset", "first query of a tile", r"s0 = tile \* (\w+)", r"s0 = tile * (\1 - 1)"),
    # bounds
    Fault("bounds", "last row not stored", r"m < (p\.rows|\d+)", r"m + 1 < \1"),
    Fault("bounds", "last column not stored", r"n < (\d{2,})\) store", r"n + 1 < \1) store"),
    Fault("bounds", "last column not stored by fragments", r"(column0) < (\d+);", r"\1 + 8 < \2;"),
    Fault("bounds", "last thread idle", r"(first|index) < (p\.\w+|\d+)", r"\1 + 1 < \2"),
    Fault("bounds", "one thread too many", r"(first|index) < p\.(count|threads)", r"\1 <= p.\2"),
    Fault("bounds", "last of a row skipped", r"(col|step|i) < (p\.col_count|p\.step_count|\d{2,})", r"\1 + 1 < \2"),
    Fault("bounds", "last output skipped", r"< (p\.(?:row|out)_count)", r"< \1 - 1"),
    Fault("bounds", "last key skipped", r"t < (p\.key_count|\d{2,})", r"t + 1 < \1"),
    Fault("bounds", "last query skipped", r"\bs < (p\.query_count|\d{2,})", r"s + 1 < \1"),
    Fault("bounds", "tail of k read as zero", r"(depth = Known<)(\d+)(?=>)", plus(-2)),
    # predicates
    Fault("predicate", "and becomes or", r"(t\d) && (t\d)", r"\1 || \2"),
    Fault("predicate", "padding on one side lost", r"(tap\d \+ o\d) >= 1", r"\1 >= 2"),
    Fault("predicate", "condition inverted", r"(\w+) \? (\w+) : (\w+);", r"\1 ? \3 : \2;"),
    Fault("predicate", "causal mask moved", r"t > s \+ ", "t > s + 1 + "),
    Fault("predicate", "tile ends early", r"const bool more = k \+ STRIDE < K", "const bool more = k + 2 * STRIDE < K"),
    Fault("predicate", "prefetch ends early", r"if \(ahead < K\)", "if (ahead + STRIDE < K)"),
    # scans
    Fault("offset", "a thread's place in its tile lost", r"tile \+ thread \* \d+", "tile"),
    Fault("offset", "what came before the tile lost", r"(Op\w+)\(\)\(start, acc\[lane\]\)", "acc[lane]"),
    Fault("stride", "tiles apart", r"(tile \+= )(\d+)", plus(1)),
    Fault("bounds", "last column of a row not stored", r"col < cols\) store", "col + 1 < cols) store"),
    Fault("split", "threads of a row apart", r"row_scan<(\d+)>", lambda m: f"row_scan<{max(1, int(m[1]) // 2)}>"),
    # splits, lanes and barriers
    Fault("split", "half of the lanes combined", r"lanes_reduce<(\d+)>", half_the_lanes),
    Fault("split", "groups not added", r"  Group::add_up\([^;]*;\n", ""),
    Fault("split", "lane order", r"v\[lane\]", "v[lane ^ 1]"),
    Fault("split", "buffers not exchanged", r"current \^= 1;", ""),
    Fault("split", "stage not advanced", r"now = now \+ 1 == STAGES \? 0 : now \+ 1;", ""),
    Fault("barrier", "block barrier", r"  __syncthreads\(\);", "  ;"),
    Fault("barrier", "group barrier", r"Group::sync\(\);", ";"),
    Fault("barrier", "last barrier", r"(?s)(.*)(?:__syncthreads|Group::sync|__syncwarp)\(\);", r"\1;"),
    Fault("barrier", "asynchronous copies not awaited", r"cp_async_wait<[^>]*>\(\);", ";"),
    Fault("barrier", "tile not awaited", r"\w+\.wait_full\([^;]*\);|mbar_wait\([^;]*\);", ";"),
]


def applied(text: str) -> Iterator[tuple[Fault, str, str]]:
    """Each fault that the text of a kernel has a place for, with the line before and the edited text."""
    for f in FAULTS:
        match = re.search(f.pattern, text)
        changed = re.sub(f.pattern, f.replacement, text, count=1)
        if match is not None and changed != text:
            yield f, match[0].strip().splitlines()[-1], changed
