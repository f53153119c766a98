"""PyTorch's own table of operators (OpInfo), each compiled and compared with eager on the samples that OpInfo draws.

``python tests/torch/opinfo.py`` measures entries and writes a line of JSON for each; ``test_opinfo.py`` has the tests.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.testing._comparison import default_tolerances
from torch.utils import _pytree as pytree

sys.path.insert(0, str(Path(__file__).resolve().parent))

from backend_oracle import ReferenceEngine

from arcweld.torch import backend
from arcweld.torch.options import parse_options
from arcweld.torch.report import clear_report, torch_report

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "torch-support.md"
DTYPES = (
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool,
    torch.complex64,
)  # fmt: skip
# what they return is not determined: shapes and types are compared
UNDEFINED = ("empty", "empty_like", "new_empty", "new_empty_strided", "empty_permuted", "empty_strided", "resize_")
# eager's own results in float64 are wrong from the seventh digit on (tests/codegen/test_special.py has exact ones)
LESS_EXACT = ("special.bessel_j0", "special.bessel_j1", "special.bessel_y0", "special.bessel_y1")
TIES = ("topk", "kthvalue", "sort", "median", "nanmedian", "mode")
MOST_ELEMENTS = 100_000  # of a sample's tensors: the simulator is slow

MEANING = {
    "compiled": "compiled",
    "partly": "compiled in part",
    "left": "left to PyTorch",
    "refused": "Dynamo makes no whole graph of it",
    "none": "nothing to compile",
    "unsupported": "PyTorch has it for other element types only",
}  # by status, as the document says it

Engine = str  # "sim" or "reference"


@dataclasses.dataclass
class Outcome:
    """What became of one entry for one element type.

    status    compiled | partly | left | none (nothing to compile) | refused (by Dynamo) | unsupported
    reasons   why nodes were left, by operator
    compared  samples that were executed and agree with eager
    wrong     samples that differ, and how; errors: exceptions that eager doesn't raise
    """

    name: str
    dtype: str
    status: str = "none"
    reasons: dict[str, int] = dataclasses.field(default_factory=dict)
    compared: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


@functools.cache
def entries() -> dict[str, Any]:
    """Every entry by its name and variant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_methods_invocations as table

    # it sets the seed and restores the generator round random operators, which no compiler takes: ``_run`` sets it
    table.wrapper_set_seed = lambda op, *args, **kwargs: op(*args, **kwargs)
    op_db = table.op_db
    return {op.name + (f".{op.variant_test_name}" if op.variant_test_name else ""): op for op in op_db}


def samples(op: Any, dtype: torch.dtype, most: int) -> Iterator[Any]:
    """The first ``most`` samples of which every tensor has elements, not too many of them; evenly spread."""
    fit = []
    for s in itertools.islice(op.sample_inputs("cpu", dtype), 200):
        tensors = [t for t in pytree.tree_leaves((s.input, s.args, s.kwargs)) if isinstance(t, torch.Tensor)]
        if all(0 < t.numel() <= MOST_ELEMENTS for t in tensors):
            fit.append(s)
    chosen = range(len(fit)) if len(fit) <= most else [k * len(fit) // most for k in range(most)]
    return (fit[k] for k in chosen)


def _compiled(fn: Callable[..., Any], engine: Engine, whole: bool = True) -> Callable[..., Any]:
    options = parse_options({"device": "sim", "min_block_size": 1, "movement": True, "verify": "off"})
    build = functools.partial(backend._engine, options, "sim") if engine == "sim" else _reference

    def compiler(module: Any, inputs: Any) -> Any:
        return backend.compile_with(module, inputs, options, "sim", build)

    result: Callable[..., Any] = torch.compile(fn, backend=compiler, dynamic=False, fullgraph=whole)
    return result


def _reference(graph: Any, *, feeds: Any) -> ReferenceEngine:
    return ReferenceEngine(graph, feeds)


def tolerance(op: Any, dtype: torch.dtype) -> tuple[float, float]:
    """(rtol, atol): the largest that OpInfo declares for the entry and the element type; zeros if it declares none."""
    from torch.testing._internal.common_device_type import toleranceOverride

    rtol, atol = (1e-5, 1e-6) if op.name in LESS_EXACT and dtype is torch.float64 else (0.0, 0.0)
    for d in op.decorators:
        for inner in getattr(d, "decorators", [d]):
            if isinstance(inner, toleranceOverride) and dtype in inner.d:
                found = inner.d[dtype]
                rtol, atol = max(rtol, found.rtol), max(atol, found.atol)
    return rtol, atol


def _cloned(sample: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    def one(t: Any) -> Any:
        return t.detach().clone() if isinstance(t, torch.Tensor) else t

    return pytree.tree_map(one, (sample.input, sample.args, sample.kwargs))  # type: ignore[no-any-return]


def _copied(x: Any) -> Any:
    return pytree.tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, x)


def measure(name: str, dtype: torch.dtype, most: int, engine: Engine, alone: bool = False) -> Outcome:
    """Compiles and runs ``most`` samples of one entry; ``alone`` only that of these which has the most arguments.

    The numpy references round every value to its type, which kernels do not within themselves. Where they differ from
    eager, the kernels have the last word.
    """
    op, started = entries()[name], time.monotonic()
    out = Outcome(name, str(dtype).removeprefix("torch."))
    if dtype not in op.supported_dtypes("cpu"):
        out.status = "unsupported"
        return out
    seen: list[str] = []
    torch.manual_seed(0)  # OpInfo draws from the global generator
    try:
        drawn = list(samples(op, dtype, most))
    except (RuntimeError, TypeError, NotImplementedError, AssertionError, ValueError) as error:
        out.reasons[f"OpInfo draws no sample: {_line(error)}"] = 1
        drawn = []
    if alone and drawn:
        drawn = [max(drawn, key=lambda s: len(s.args) + len(s.kwargs))]
    for k, sample in enumerate(drawn):
        seen.append(_run(op, sample, k, dtype, engine, out))
    found = collections.Counter(s for s in seen if s)
    if found:
        kinds = set(found)
        if kinds <= {"compiled", "none"}:
            out.status = "compiled" if "compiled" in kinds else "none"
        elif "compiled" in kinds or "partly" in kinds:
            out.status = "partly"
        else:
            out.status = "refused" if kinds == {"refused"} else "left"
    out.seconds = round(time.monotonic() - started, 2)
    return measure(name, dtype, most, "sim", alone) if out.wrong and engine == "reference" else out


def _run(op: Any, sample: Any, k: int, dtype: torch.dtype, engine: Engine, out: Outcome) -> str:
    """The status of one sample; notes what was compared and what was wrong. Empty if eager raises."""
    try:
        torch.manual_seed(0)
        given = _cloned(sample)
        expected = op.op(given[0], *given[1], **given[2])
    except Exception:
        return ""
    if any(isinstance(t, torch.Tensor) and t.numel() == 0 for t in pytree.tree_leaves(expected)):
        return ""

    def plain(x: Any, args: Any, kwargs: Any) -> Any:
        return op.op(x, *args, **kwargs)

    def copied(x: Any, args: Any, kwargs: Any) -> Any:
        return _copied(op.op(x, *args, **kwargs))

    status = ""
    for fn in (plain, copied):  # a view is made by PyTorch without a kernel: its copy is compiled
        torch._dynamo.reset()
        clear_report()
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                found = _compiled(fn, engine)(*_cloned(sample))
        except Exception as error:
            return _in_pieces(op, sample, k, fn, engine, expected, dtype, error, out)
        status = _status(out)
        if status != "none":
            break
    if op.name in TIES:
        found, expected = _without_ties(sample, found), _without_ties(sample, expected)
    if op.name == "argsort":
        found, expected = _in_order(sample, found), _in_order(sample, expected)
    difference = _difference(found, expected, *tolerance(op, dtype), undefined=op.name in UNDEFINED)
    if difference and not _agrees_with_exact(op, sample, found, expected, *tolerance(op, dtype)):
        if _is_pytorchs(fn, sample, found):
            out.reasons["PyTorch's own graph differs from eager"] = 1
        else:
            out.wrong.append(f"sample {k}: {difference}")
    elif status in ("compiled", "partly"):
        out.compared += 1
    return status


def _in_pieces(
    op: Any, sample: Any, k: int, fn: Callable[..., Any], engine: Engine, expected: Any, dtype: torch.dtype,
    error: Exception, out: Outcome,
) -> str:  # fmt: skip
    """A sample of which there is no whole graph: what pieces give has to be right. Notes whose error it is."""
    reason = f"Dynamo: {_line(error)}"
    out.reasons[reason] = out.reasons.get(reason, 0) + 1
    torch._dynamo.reset()
    clear_report()
    try:
        torch.manual_seed(0)
        with torch.no_grad():
            found = _compiled(fn, engine, whole=False)(*_cloned(sample))
    except Exception as second:
        if not _fails_without_us(fn, sample):
            out.errors.append(f"sample {k}: {type(second).__name__}: {_line(second)}")
        return "refused"
    difference = _difference(found, expected, *tolerance(op, dtype), undefined=op.name in UNDEFINED)
    if difference and not _agrees_with_exact(op, sample, found, expected, *tolerance(op, dtype)):
        out.wrong.append(f"sample {k}, in pieces: {difference}")
    return "refused"


def _fails_without_us(fn: Callable[..., Any], sample: Any) -> bool:
    """True if PyTorch's own compiler front end cannot take the sample, whatever the backend."""
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            torch.compile(fn, backend="aot_eager", dynamic=False)(*_cloned(sample))
    except Exception:
        return True
    return False


def _is_pytorchs(fn: Callable[..., Any], sample: Any, found: Any) -> bool:
    """True if the graph that PyTorch makes of the sample gives, run by PyTorch, what was found."""
    torch._dynamo.reset()
    with torch.no_grad():
        own = torch.compile(fn, backend="aot_eager_decomp_partition", dynamic=False)(*_cloned(sample))
    return not _difference(found, own, 0.0, 0.0)


def _status(out: Outcome) -> str:
    reports = torch_report()
    nodes, compiled = sum(g.nodes for g in reports), sum(g.compiled for g in reports)
    for g in reports:
        for (op, why), n in g.left.items():
            out.reasons[f"{op}: {why}"] = out.reasons.get(f"{op}: {why}", 0) + n
        for b in g.blocks:
            if b.fallback is not None:
                compiled -= b.nodes
                why = f"block left: {_line(b.fallback)}"
                out.reasons[why] = out.reasons.get(why, 0) + 1
    if not nodes:
        return "none"
    return "compiled" if compiled == nodes else "partly" if compiled > 0 else "left"


def _difference(found: Any, expected: Any, rtol: float, atol: float, undefined: bool = False) -> str:
    a, b = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    if len(a) != len(b):
        return f"{len(a)} results instead of {len(b)}"
    for x, y in zip(a, b):
        try:
            if undefined and isinstance(y, torch.Tensor):
                x, y = (torch.empty_like(t, device="meta") for t in (x, y))
            least = default_tolerances(y.dtype) if isinstance(y, torch.Tensor) else (0.0, 0.0)
            exact = least == (0.0, 0.0)
            limits = {} if exact else {"rtol": max(rtol, least[0]), "atol": max(atol, least[1])}
            torch.testing.assert_close(x, y, equal_nan=True, **limits)
        except AssertionError as error:
            return " ".join(str(error).split())[:300]
    return ""


def _agrees_with_exact(op: Any, sample: Any, found: Any, expected: Any, rtol: float, atol: float) -> bool:
    """True if the results agree with eager's for the same operands in f64, rounded: eager itself is less exact."""

    def wide(t: Any) -> Any:
        if isinstance(t, torch.dtype):
            return {torch.float32: torch.float64, torch.complex64: torch.complex128}.get(t, t)
        if isinstance(t, torch.Tensor) and t.is_complex():
            return t.to(torch.complex128)
        return t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t

    given = pytree.tree_map(wide, _cloned(sample))
    try:
        torch.manual_seed(0)
        exact = op.op(given[0], *given[1], **given[2])
    except Exception:
        return False
    leaves, tree = pytree.tree_flatten(expected)
    rounded = [
        e.to(t.dtype) if isinstance(t, torch.Tensor) and isinstance(e, torch.Tensor) else e
        for e, t in zip(pytree.tree_leaves(exact), leaves)
    ]
    return len(rounded) == len(leaves) and not _difference(found, pytree.tree_unflatten(rounded, tree), rtol, atol)


def _without_ties(sample: Any, results: Any) -> Any:
    """Values and, for their indices, whether these name such elements: which of equal ones is not determined."""
    if isinstance(results, torch.Tensor) or len(results) != 2 or sample.input.dim() == 0:
        return results
    values, places = results
    for dim in range(sample.input.dim()):
        wide = values.dim() == sample.input.dim()
        at = places if wide else places.unsqueeze(dim)
        fits = all(a <= b for k, (a, b) in enumerate(zip(at.shape, sample.input.shape)) if k != dim)
        if fits and int(at.max()) < sample.input.shape[dim]:
            picked = sample.input.gather(dim, at)
            if torch.equal(picked if wide else picked.squeeze(dim), values):
                return values, True
    return values, False


def _in_order(sample: Any, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The elements in the order that argsort tells, and all places: which of equal ones is first is not determined."""
    if sample.input.dim() == 0:
        return sample.input, places
    dim = sample.kwargs.get("dim", sample.args[0] if sample.args else -1)
    return sample.input.gather(dim, places), places.sort(dim)[0]


def _line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("backend="):  # BackendCompilerFailed: what raised follows
        return lines[1][:200]
    return lines[0][:160] if lines else type(error).__name__


def listed() -> dict[str, str]:
    """The entries in the document, each with what it says became of it."""
    rows = [line.split("|") for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return {row[1].strip().strip("`"): row[2].strip() for row in rows}


def document(found: Sequence[Outcome]) -> str:
    """The text of docs/torch-support.md."""
    counts = collections.Counter(o.status for o in found)
    summary = "\n".join(f"| {counts[s]} | {m} |" for s, m in MEANING.items() if counts[s])
    ordered = sorted(found, key=lambda o: o.name)
    rows = "\n".join(f"| `{o.name}` | {MEANING[o.status]} | {_reasons(o)} |" for o in ordered)
    compared, operators = sum(o.compared for o in found), {entries()[o.name].name for o in found}
    whole = {entries()[o.name].name for o in found if o.status == "compiled"}
    return f"""# PyTorch's operators

Written by `python tests/torch/opinfo.py --document`, with torch
{torch.__version__.split("+")[0]}. OpInfo is PyTorch's table of operators for its own tests: {len(found)} entries, of
{len(operators)} operators. Each entry is compiled by `torch.compile` for the simulator in float32, on two of the
samples that OpInfo draws. The results are compared with eager's within OpInfo's tolerances, or, where eager itself is
less exact, with eager's in float64. {compared} samples were compared, and none differs.

Blocks that only move elements are compiled here (`movement=True`); by default PyTorch makes such copies. A view is made
by PyTorch without a kernel, so a copy of it is compiled. Samples with tensors that have no elements stay with PyTorch;
they are not counted, nor are those with more than {MOST_ELEMENTS:,} elements. Of values that are not determined
(`empty`) types and shapes are compared.

| entries | outcome |
|---|---|
{summary}

{len(whole)} operators have an entry that is compiled.

| entry | outcome | reasons |
|---|---|---|
{rows}
"""


def _reasons(o: Outcome) -> str:
    if o.status not in ("partly", "left", "refused"):
        return ""
    return "; ".join(r.replace("|", "\\|") for r in sorted(o.reasons))


def main() -> None:
    """Measures entries, a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="entries; all without")
    parser.add_argument("--dtypes", nargs="*", default=["float32"])
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--engine", choices=("sim", "reference"), default="sim")
    parser.add_argument("--part", default="0/1", help="k/n: every n-th entry, from the k-th on")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--document", action="store_true", help="all entries in float32, into docs/torch-support.md")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    part, parts = map(int, args.part.split("/"))
    names = args.names or list(entries())[part::parts]
    out = args.out.open("w", encoding="utf-8") if args.out else sys.stdout
    found = []
    for name in names:
        for dtype in args.dtypes:
            found.append(measure(name, getattr(torch, dtype), args.samples, args.engine))
            print(json.dumps(dataclasses.asdict(found[-1])), file=out, flush=True)
    problems = [o.name for o in found if o.wrong or o.errors]
    if problems:
        raise SystemExit(f"not as eager: {', '.join(problems)}")
    if args.document:
        DOCUMENT.write_text(document(found), encoding="utf-8")


if __name__ == "__main__":
    main()
