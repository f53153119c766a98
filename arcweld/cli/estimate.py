"""``estimate``: what a call of a model or an engine takes on cards that need not be there. It is modelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from arcweld.cli.common import interface, is_engine, megabytes, open_graph, out, print_json, print_table
from arcweld.cli.inputs import InOut, Values, precision_of
from arcweld.cli.shapes import parse_shapes, sizes_of
from arcweld.compiler.cards import Card
from arcweld.compiler.cards import card as card_called
from arcweld.compiler.errors import UsageError
from arcweld.compiler.ir import Graph
from arcweld.driver.estimate import Estimate, estimate_engine, planned
from arcweld.driver.samples import sample_sizes
from arcweld.driver.stages import of_known_sizes
from arcweld.runtime.engine_file import EngineData, read_engine

Opt = typer.Option
MOST_KERNELS = 12  # that are printed


def estimate(
    path: Annotated[str, typer.Argument(help="ONNX or engine file.")],
    cards: Annotated[str, Opt("--card", "--cards", help="Cards: h100,a100,l4, or a description in a file.")] = "h100",
    shapes: Annotated[str, Opt("--shapes", "--input-shapes", help="Input shapes: x:1x3x224x224.")] = "",
    fp16: Annotated[bool, Opt("--fp16", help="In half precision (of a model).")] = False,
    bf16: Annotated[bool, Opt("--bf16", help="In bfloat16 (of a model).")] = False,
    price: Annotated[str, Opt("--price", help="Price of an hour: 2.5, or h100=2.5,l4=0.7.")] = "",
    as_json: Annotated[bool, Opt("--json", help="Print JSON.")] = False,
    values: Values = "", inout: InOut = "",
) -> None:  # fmt: skip
    """Models what a call takes on each card: time, throughput, memory, cost. Nothing is compiled, run or measured."""
    chosen = [card_called(name.strip()) for name in cards.split(",") if name.strip()]
    if not chosen:
        raise UsageError("--card names no card")
    prices = _prices(price, chosen)
    found = _of_engine(path, chosen, shapes, fp16 or bf16) if is_engine(path) else _of_model(
        path, chosen, shapes, precision_of(fp16, bf16), values, inout
    )  # fmt: skip
    if as_json:
        print_json([e.report(prices.get(e.card.name)) for e in found])
        return
    _print_cards(found, prices)
    if len(found) == 1:
        print_kernels(found[0])


def _of_engine(path: str, cards: Sequence[Card], shapes: str, half: bool) -> list[Estimate]:
    if half:
        raise UsageError("an engine has its precision", hint="leave out --fp16 and --bf16, or estimate the model")
    data = read_engine(path)
    sizes = engine_sizes(data, shapes)
    return [estimate_engine(data, card, sizes) for card in cards]


def engine_sizes(data: EngineData, shapes: str) -> dict[str, int]:
    """The sizes of the symbols: from ``--shapes``, or else those that the engine was verified with, if any."""
    verified: dict[str, list[int]] = (data.verify or {}).get("shapes", {})
    given = parse_shapes(shapes) if shapes else {n: tuple(shape) for n, shape in verified.items()}
    return sizes_of(interface(data), given)


def _of_model(
    path: str, cards: Sequence[Card], shapes: str, precision: str, values: str, inout: str
) -> list[Estimate]:
    return estimates_of(open_graph(path, shapes, values=values, inout=inout), cards, precision)


def estimates_of(graph: Graph, cards: Sequence[Card], precision: str) -> list[Estimate]:
    """A model's estimates on some cards, at the sizes that a build would verify with."""
    sizes = sample_sizes(of_known_sizes(graph), None)
    by_arch = {c.arch: planned(graph, precision, c.arch) for c in cards}
    return [estimate_engine(by_arch[c.arch], c, sizes) for c in cards]


def _prices(text: str, cards: Sequence[Card]) -> dict[str, float]:
    """The price of an hour by card. Raises UsageError for what is no price, and for another card."""
    found: dict[str, float] = {}
    known = {c.name for c in cards}
    for word in (w.strip() for w in text.split(",") if w.strip()):
        name, _, number = word.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 < value < 1e6:
            raise UsageError(f"--price: {word!r} is no price of an hour", hint="write 2.5, or h100=2.5,l4=0.7")
        if name and name not in known:
            raise UsageError(f"--price: {name!r} is not one of the cards {', '.join(sorted(known))}")
        found |= {name: value} if name else dict.fromkeys(known, value)
    return found


def _print_cards(found: Sequence[Estimate], prices: Mapping[str, float]) -> None:
    columns = ["card", "latency_ms", "calls/s", "% of roofline", "launches", "memory"]
    columns += ["cost of a million"] if prices else []
    rows = []
    for e in found:
        memory = megabytes(e.weights + e.workspace) + ("" if e.fits else ", which it does not have")
        share = 100 * e.floor_seconds / e.seconds
        latency, calls = f"{e.seconds * 1e3:.3g}", f"{1 / e.seconds:.4g}"
        row = [e.card.title, latency, calls, f"{share:.0f}", str(len(e.launches)), memory]
        if prices:
            row.append(f"{e.cost_per_million(prices[e.card.name]):.4g}" if e.card.name in prices else "")
        rows.append(row)
    sizes = ", ".join(f"{name}={size}" for name, size in found[0].sizes.items())
    out.print(f"modelled, not measured{f', at {sizes}' if sizes else ''}:")
    print_table(columns, rows, ("latency_ms", "calls/s", "% of roofline", "launches", "cost of a million"))
    for text in dict.fromkeys(t for e in found for t in e.beside):
        out.print(f"  not in it: {text}")


def _short(origin: Sequence[str]) -> str:
    """The first and the last of the nodes, without the path that most of them share."""
    names = [n.rsplit("/", 1)[-1] or n for n in origin]
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)})" if names else ""


def print_kernels(e: Estimate, nodes: frozenset[str] = frozenset()) -> None:
    """Prints the kernels that take most, those of one name together.

    ``nodes``: of these, only the kernels that compute one of them; all where there are none.
    """
    kinds: dict[str, list[Any]] = {}
    for x in e.launches:
        if not nodes or nodes & set(x.origin):
            kinds.setdefault(x.kernel, []).append(x)
    ranked = sorted(kinds.values(), key=lambda own: -sum(x.modelled.us for x in own))
    rows = [
        (
            str(len(own)), f"{sum(x.modelled.us for x in own):.4g}", f"{100 * own[0].modelled.share:.0f}",
            f"{sum(x.modelled.us - x.modelled.floor for x in own):.4g}", own[0].modelled.bound, own[0].kernel,
            _short(own[0].origin),
        )
        for own in ranked[:MOST_KERNELS]
    ]  # fmt: skip
    numbers = ("times", "us in all", "% of roofline", "gain at most")
    print_table((*numbers, "bound by", "kernel", "nodes of the first"), rows, numbers)
    if len(ranked) > MOST_KERNELS:
        rest = sum(x.modelled.us for own in ranked[MOST_KERNELS:] for x in own)
        out.print(f"  and {len(ranked) - MOST_KERNELS} kernels more, {rest:.4g} us in all")
