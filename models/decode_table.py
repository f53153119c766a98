"""The kernels of one decoder layer's decode step, compiled without a GPU: bytes, blocks, registers, modelled times.

    python -m arcweld.models.decode_table --out docs/benchmarks

Writes ``decode-modelled.json`` and ``decode-modelled.md``. Nothing is run and no time is measured: a kernel's modelled
time is that of its bytes at the card's bandwidth. Weights take no memory. Instructions are counted where ``cuobjdump``
and the ``nvdisasm`` that it calls are on the path (nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm have them).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arcweld.codegen.kernel import BoundKernel, Buffer, Kernel, KernelSource
from arcweld.codegen.nvrtc.compiler import Compiled, Job, version
from arcweld.codegen.nvrtc.pool import compile_many
from arcweld.codegen.templates.card import SMS
from arcweld.compiler import dims
from arcweld.compiler.dims import Dim
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import Expr, loads
from arcweld.compiler.ir import Graph, Weight
from arcweld.compiler.options import Options
from arcweld.compiler.text import parse_graph
from arcweld.driver.build import in_regions, plan_parts
from arcweld.driver.object_code import in_order
from arcweld.passes.pipeline import run_passes

ARCH = "sm_90a"
BANDWIDTH = 3.35e12  # bytes a second of an H100 SXM (NVIDIA H100 datasheet)
ROWS = (1, 4, 16)
CONTEXTS = (512, 32 * 1024)
# Weights are given as they are packed: folding or packing them would make arrays of them.
AS_PACKED = frozenset({"constant-folding", "pack-weights"})
COUNTED = ("UBLKCP", "HMMA", "HGMMA", "UTMALDG", "LDG", "STG", "LDL", "STL", "FFMA", "PRMT", "LOP3", "HFMA2", "I2F")


@dataclass(frozen=True, slots=True)
class Decoder:
    """The sizes of a decoder's layer."""

    hidden: int
    heads: int
    groups: int
    head: int
    ffn: int


@dataclass(frozen=True, slots=True)
class Storage:
    """How a layer's matrices are stored.

    ``block``: elements along k that share a scale in f16; 0: those of a column do. None of it for bf16.
    """

    dtype: DType
    block: int = 0

    @property
    def is_quantised(self) -> bool:
        """Whether there are scales."""
        return self.dtype is not DType.BF16

    def nbytes(self, n: int, k: int) -> int:
        """Bytes of a matrix of ``n`` columns of ``k`` elements, with its scales."""
        scales = 2 * n * (k // self.block if self.block else 1) if self.is_quantised else 0
        return self.dtype.nbytes(n * k) + scales


STORAGES = {
    "bf16": Storage(DType.BF16), "int8": Storage(DType.I8), "fp8": Storage(DType.F8E4M3FN),
    "int4 g128": Storage(DType.U4, 128), "int4 g32": Storage(DType.U4, 32),
}  # fmt: skip
DECODERS = {"Llama-1B": Decoder(2048, 32, 8, 64, 8192), "Llama-8B": Decoder(4096, 32, 8, 128, 14336)}


# ---------------------------------------------------------------------------------------------------------- the graph


def layer(d: Decoder, rows: int, context: int, s: Storage = STORAGES["bf16"]) -> Graph:
    """One layer of a decode step for ``rows`` sequences: norms, projections, RoPE, caches, attention, SwiGLU.

    Every sequence's cache is full, and the step's key and value take the place of one entry.
    """
    return _parsed(f"""graph 'decode layer'
{_inputs(d, rows, 1)}
input %at: i64[{rows}, {d.groups}, 1, {d.head}]
input %keys: bf16[{rows}, {d.groups}, {context}, {d.head}]
input %values: bf16[{rows}, {d.groups}, {context}, {d.head}]
{_matrices(d, s)}
{_heads(d, rows, 1)}
%keys_now = ScatterElements(%keys, %at, %k, axis=2, reduction='none', strict=1) @ 'key cache'
%values_now = ScatterElements(%values, %at, %vt, axis=2, reduction='none', strict=1) @ 'value cache'
{_attended(d, rows, 1, context, "keys_now", "values_now", 0)}
output %y 'y'
output %keys_now 'keys_now' in %keys
output %values_now 'values_now' in %values
""")


def prefill_layer(d: Decoder, length: int, s: Storage = STORAGES["bf16"]) -> Graph:
    """One layer for a prompt of ``length`` tokens, which gives the prompt's keys and values too."""
    return _parsed(f"""graph 'prefill layer'
{_inputs(d, 1, length)}
{_matrices(d, s)}
{_heads(d, 1, length)}
{_attended(d, 1, length, length, "k", "vt", 1)}
output %y 'y'
output %k 'keys'
output %vt 'values'
""")


def _inputs(d: Decoder, rows: int, length: int) -> str:
    return f"""input %x: bf16[{rows}, {length}, {d.hidden}]
input %cos: bf16[{rows}, 1, {length}, {d.head}]
input %sin: bf16[{rows}, 1, {length}, {d.head}]"""


def _matrices(d: Decoder, s: Storage) -> str:
    width = d.heads * d.head
    return f"""weight %g1: bf16[{d.hidden}]
weight %g2: bf16[{d.hidden}]
{_matrix("qkv", width + 2 * d.groups * d.head, d.hidden, s)}
{_matrix("o", d.hidden, width, s)}
{_matrix("gate_up", 2 * d.ffn, d.hidden, s)}
{_matrix("down", d.hidden, d.ffn, s)}"""


def _heads(d: Decoder, rows: int, length: int) -> str:
    """The norm, and from it queries ``q``, keys ``k`` and values ``vt`` by heads."""
    width = d.heads * d.head
    text = f"""%h = RMSNormalization(%x, %g1, axis=2, epsilon=1e-05) @ 'input norm'
{_product("m", "h", "qkv")}
"""
    for name, start, heads in (("q", 0, d.heads), ("k", width, d.groups), ("v", width + d.groups * d.head, d.groups)):
        shape = f"{rows}, {length}, {heads}, {d.head}"
        text += f"""{_slice(f"{name}s", "m", (rows, length, heads * d.head), (0, 0, start))}
%{name}h: bf16[{shape}] = Reshape(%{name}s, shape=({shape}))
%{name}t: bf16[{rows}, {heads}, {length}, {d.head}] = Transpose(%{name}h, perm=(0, 2, 1, 3))
"""
    return text + _rope("q", (rows, d.heads, length, d.head)) + _rope("k", (rows, d.groups, length, d.head))


def _attended(d: Decoder, rows: int, length: int, context: int, keys: str, values: str, causal: int) -> str:
    """Attention to keys and values, and what follows it in a layer, up to the result ``y``."""
    width = d.heads * d.head
    return f"""{_shared("all_keys", keys, d, rows, context)}
{_shared("all_values", values, d, rows, context)}
%a = Attention(%q, %all_keys, %all_values, scale={d.head**-0.5}, is_causal={causal}) @ 'attention'
%at1: bf16[{rows}, {length}, {d.heads}, {d.head}] = Transpose(%a, perm=(0, 2, 1, 3))
%ar: bf16[{rows}, {length}, {width}] = Reshape(%at1, shape=({rows}, {length}, {width}))
{_product("ao", "ar", "o")}
%r = Add(%x, %ao)
%h2 = RMSNormalization(%r, %g2, axis=2, epsilon=1e-05) @ 'second norm'
{_product("gu", "h2", "gate_up")}
{_slice("gate", "gu", (rows, length, d.ffn), (0, 0, 0))}
{_slice("up", "gu", (rows, length, d.ffn), (0, 0, d.ffn))}
%s = Silu(%gate)
%f = Mul(%s, %up) @ 'gate'
{_product("dn", "f", "down")}
%y = Add(%r, %dn)"""


def _matrix(name: str, n: int, k: int, s: Storage) -> str:
    """The weight, as stored and as numbers to multiply by."""
    if not s.is_quantised:
        return f"weight %{name}: bf16[{n}, {k}]"
    shape, axis = (f"{n}, {k // s.block}", 1) if s.block else (f"{n}", 0)
    zero = f", %{name}_zero" if s.dtype is DType.U4 else ""
    lines = [
        f"weight %{name}_stored: {s.dtype.value}[{n}, {k}]", f"weight %{name}_scale: f16[{shape}]",
        f"%{name}: bf16[{n}, {k}] = DequantizeLinear(%{name}_stored, %{name}_scale{zero}, axis={axis}, "
        f"block={s.block}, dtype=dtype(bf16), keep=1)",
    ]  # fmt: skip
    return "\n".join([*([f"weight %{name}_zero: u4[] data=8"] if zero else []), *lines])


def _product(name: str, x: str, weight: str) -> str:
    return f"%{weight}_view = Transpose(%{weight}, perm=(1, 0))\n%{name} = MatMul(%{x}, %{weight}_view) @ '{weight}'"


def _slice(name: str, x: str, sizes: Sequence[int], starts: Sequence[int]) -> str:
    shape, steps = ", ".join(map(str, sizes)), ", ".join("1" for _ in sizes)
    start = ", ".join(map(str, starts))
    return f"%{name}: bf16[{shape}] = Slice(%{x}, starts=({start}), sizes=({shape}), steps=({steps}))"


def _rope(name: str, shape: tuple[int, ...]) -> str:
    half = (*shape[:-1], shape[-1] // 2)
    return f"""{_slice(f"{name}a", f"{name}t", half, (0, 0, 0, 0))}
{_slice(f"{name}b", f"{name}t", half, (0, 0, 0, half[-1]))}
%{name}n = Neg(%{name}b)
%{name}r = Concat(%{name}n, %{name}a, axis=3)
%{name}u = Mul(%{name}t, %cos)
%{name}w = Mul(%{name}r, %sin)
%{name} = Add(%{name}u, %{name}w) @ 'rope'
"""


def _shared(name: str, cache: str, d: Decoder, rows: int, context: int) -> str:
    """Each head's keys or values: those of its group."""
    each, own = d.heads // d.groups, f"{rows}, {d.heads}, {context}, {d.head}"
    wide = f"{rows}, {d.groups}, {each}, {context}, {d.head}"
    return f"""%{name}5: bf16[{rows}, {d.groups}, 1, {context}, {d.head}] = Reshape(%{cache}, \
shape=({rows}, {d.groups}, 1, {context}, {d.head}))
%{name}e: bf16[{wide}] = Expand(%{name}5, shape=({wide}))
%{name}: bf16[{own}] = Reshape(%{name}e, shape=({own}))"""


def _parsed(text: str) -> Graph:
    """The graph; each weight is one zero that is repeated, so that it takes no memory."""
    shapes = re.findall(r"^weight %(\w+): (\w+)\[([\d, ]+)\]", text, re.MULTILINE)
    named = {
        n: np.broadcast_to(np.zeros((), DType(t).numpy), [int(d) for d in s.split(",")]) for n, t, s in shapes
    }
    graph = parse_graph(text, weights=named)
    return graph.replace(weights={n: Weight(named[n], n) if n in named else w for n, w in graph.weights.items()})


# ---------------------------------------------------------------------------------------------------------- the bytes


def traffic(bound: BoundKernel, source: KernelSource) -> tuple[int, int]:
    """Bytes that one launch reads and writes, each element that it touches once."""
    kernel = bound.kernel
    extent = {a.sym: a.extent for axes in kernel.axes.values() for a in axes}
    read, written = 0, 0
    for b in kernel.buffers:
        read += _touched(b, [x.attr[2] for x in _loads(kernel) if x.attr[0] == b.name], extent)
        written += _touched(b, [s.coords for s in kernel.stores if s.buffer == b.name], extent)
    own = sum(_elements(dims.product(b.shape)) * b.dtype.size for b in source.workspace)
    return read + own, written + own


def _loads(kernel: Kernel) -> list[Expr]:
    """All loads, also those of what says where something is read or written."""
    stages = (s for name, group in kernel.attrs.items() if name.endswith("stages") for s in group)
    places = [_payload(read) for s in kernel.stores for c in s.coords for read in dims.dynamic_atoms(c)]
    values = [s.value for s in kernel.stores]
    return loads([*kernel.loads.values(), *values, *places, *(e for s in stages for e in s.exprs())])


def _touched(buffer: Buffer, places: Iterable[tuple[Dim, ...]], extent: Mapping[dims.Sym, Dim]) -> int:
    """Bytes of a buffer's elements at these coordinates: no more than the points of the axes that they mention."""
    points = 0
    for coords in places:
        symbols = {s for c in coords for s in _symbols(c)}
        points += _elements(dims.product(extent.get(s, 1) for s in symbols))
    return buffer.dtype.nbytes(min(points, _elements(dims.product(buffer.shape))))


def _symbols(coordinate: Dim) -> set[dims.Sym]:
    """The axes that decide a coordinate, also one that is read."""
    found = set(dims.free_symbols(coordinate))
    for read in dims.dynamic_atoms(coordinate):
        found |= {s for x in loads([_payload(read)]) for c in x.attr[2] for s in _symbols(c)}
    return found


def _payload(read: dims.Dyn) -> Expr:
    assert isinstance(read.payload, Expr)
    return read.payload


def _elements(count: Dim) -> int:
    if not isinstance(count, int):
        raise TypeError(f"{count} elements: all sizes of the table are known")
    return count


# ---------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel of a step."""

    kernel: str
    origin: str
    read: int
    written: int
    blocks: int
    shared: int
    registers: int
    spills: int
    instructions: Mapping[str, int]

    @property
    def modelled_us(self) -> float:
        """Microseconds that its bytes take at the card's bandwidth."""
        return (self.read + self.written) / BANDWIDTH * 1e6


def rows_of(graph: Graph) -> list[Row]:
    """The kernels of a step, in their order."""
    fused = in_regions(run_passes(graph, Options(arch=(ARCH,), disable=AS_PACKED)))
    (part,) = plan_parts([(None, fused)], (ARCH,))
    launches = [(p.bound, _for_card(p.sources)) for p in in_order(part.launches)]
    compiled = compile_many([Job(s.source, ARCH, s.entry) for _, s in launches])
    return [_row(bound, source, done) for (bound, source), done in zip(launches, compiled, strict=True)]


def _for_card(found: Sequence[KernelSource]) -> KernelSource:
    return max(found, key=lambda s: s.arch == ARCH)


def _row(bound: BoundKernel, source: KernelSource, done: Compiled) -> Row:
    read, written = traffic(bound, source)
    blocks = _elements(dims.product(source.grid))
    return Row(
        source.entry, ", ".join(bound.origin), read, written, blocks, source.shared_bytes, done.registers,
        done.spill_bytes, instructions(done.code),
    )  # fmt: skip


def instructions(cubin: bytes) -> dict[str, int]:
    """How often the machine code has each of COUNTED; empty where cuobjdump or nvdisasm is missing."""
    tool = shutil.which("cuobjdump")
    if tool is None or shutil.which("nvdisasm") is None:
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    names = Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", text, re.MULTILINE))
    return {name: names[name] for name in COUNTED if names[name]}


def needed_bytes(d: Decoder, rows: int, context: int, s: Storage = STORAGES["bf16"]) -> int:
    """Bytes of one layer's weights and of the caches of all sequences."""
    width = d.heads * d.head
    matrices = ((width + 2 * d.groups * d.head, d.hidden), (d.hidden, width), (2 * d.ffn, d.hidden), (d.hidden, d.ffn))
    caches = 2 * rows * d.groups * context * d.head
    return sum(s.nbytes(n, k) for n, k in matrices) + 2 * (2 * d.hidden + caches)


def cases() -> list[tuple[str, str, int, int]]:
    """Model, storage of the weights, rows and context of each step. Long contexts are those of caches alone."""
    return [
        (name, storage, rows, context)
        for name in DECODERS for storage, s in STORAGES.items() for rows in ROWS for context in CONTEXTS
        if context == CONTEXTS[0] or not s.is_quantised
    ]  # fmt: skip


def table() -> dict[str, Any]:
    """All shapes: what each step needs to read, and what its kernels read and write."""
    steps = []
    for name, storage, rows, context in cases():
        d, s = DECODERS[name], STORAGES[storage]
        found, needed = rows_of(layer(d, rows, context, s)), needed_bytes(d, rows, context, s)
        moved = sum(r.read + r.written for r in found)
        steps.append({
            "model": name, "weights": storage, "rows": rows, "context": context, "weights_and_cache_bytes": needed,
            "moved_bytes": moved, "ratio": round(moved / needed, 4),
            "modelled_us": round(sum(r.modelled_us for r in found), 2),
            "kernels": [{**asdict(r), "modelled_us": round(r.modelled_us, 2)} for r in found],
        })  # fmt: skip
        said = f"{name}, {storage}, {rows} rows, context {context}"
        print(f"{said}: {moved / needed:.4f} of weights and cache", flush=True)
    return {
        "arch": ARCH, "nvrtc": version(), "bandwidth_bytes_per_s": BANDWIDTH, "multiprocessors": SMS, "steps": steps,
    }  # fmt: skip


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        "# A decode step's kernels, modelled",
        "",
        "One layer in bf16, its matrices as said (scales in f16, for each column or each group along k), compiled",
        f"for {report['arch']} by NVRTC {report['nvrtc']} and not run: `python -m arcweld.models.decode_table` writes",
        "this page. **Times are modelled, not measured**: a kernel's bytes, each",
        f"element once, at {report['bandwidth_bytes_per_s'] / 1e12:.2f} TB/s. *Ratio* is all bytes over those of the",
        "weights and caches. Numbers of SASS instructions are those in the code, not those that run.",
    ]  # fmt: skip
    for s in report["steps"]:
        lines += [
            "",
            f"## {s['model']}, {s['weights']}, {s['rows']} row{'s' * (s['rows'] > 1)}, context {s['context']}",
            "",
            f"Weights and caches {s['weights_and_cache_bytes'] / 1e6:.1f} MB, moved {s['moved_bytes'] / 1e6:.1f} MB, "
            f"ratio {s['ratio']:.4f}, modelled {s['modelled_us']:.1f} µs.", "",
            "| kernel | reads MB | writes MB | blocks | shared KB | registers | spills | modelled µs | SASS |",
            "|---|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for k in s["kernels"]:
            sass, name = " ".join(f"{n} {c}" for n, c in k["instructions"].items()), k["kernel"].rpartition("_")[0]
            lines.append(
                f"| {name} | {k['read'] / 1e6:.3f} | {k['written'] / 1e6:.3f} | {k['blocks']} "
                f"| {k['shared'] / 1024:.1f} | {k['registers']} | {k['spills']} | {k['modelled_us']:.2f} | {sass} |"
            )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="docs/benchmarks")
    folder = Path(parser.parse_args(argv).out)
    folder.mkdir(parents=True, exist_ok=True)
    report = table()
    (folder / "decode-modelled.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "decode-modelled.md").write_text(page(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
