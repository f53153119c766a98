"""GPUs that models of time know: sizes and rates from NVIDIA's data sheets and whitepapers, each with its source.

Rates are dense ones, and tensor cores add up in f32 (in i32 for integers). ``card`` also reads a description of another
GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcweld.compiler.archs import parse_arch
from arcweld.compiler.errors import UsageError

NUMBERS = ("multiprocessors", "clock", "memory", "memory_bytes", "l2", "scalar")
TYPES = ("f16", "tf32", "f8", "i8")  # that a card may multiply on tensor cores


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU.

    name             as users write it: ``h100``
    title            as NVIDIA writes it
    arch             the architecture that kernels for it are compiled for
    multiprocessors  streaming multiprocessors
    clock            boost clock, Hz
    memory           bandwidth of its memory, bytes/s
    memory_bytes     size of its memory
    l2               bytes of the L2 cache
    scalar           f32 operations/s of ordinary arithmetic; a multiply-add counts as two
    tensor           operations/s of tensor cores by operand type (``f16`` for bf16 too); a type that is missing runs
                     as the next wider one
    source           where the numbers are from
    """

    name: str
    title: str
    arch: str
    multiprocessors: int
    clock: float
    memory: float
    memory_bytes: float
    l2: float
    scalar: float
    tensor: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


def _card(
    name: str, title: str, arch: str, sms: int, ghz: float, gbs: float, gb: float, l2_mib: float, tflops: float,
    tensor: tuple[float, float, float, float], source: str,
) -> Card:  # fmt: skip
    """Rates in Tera-operations/s; those of ``tensor`` in the order of ``TYPES``, 0 for a type that it lacks."""
    rates = {t: rate * 1e12 for t, rate in zip(TYPES, tensor) if rate}
    return Card(name, title, arch, sms, ghz * 1e9, gbs * 1e9, gb * 1e9, l2_mib * 2**20, tflops * 1e12, rates, source)


_HOPPER = "NVIDIA H100 Tensor Core GPU Architecture whitepaper, tables 1 and 2"
CARDS: Mapping[str, Card] = {
    c.name: c
    for c in (
        _card("h100", "H100 SXM5 80GB", "sm_90a", 132, 1.83, 3350, 80, 50, 66.9, (989.4, 494.7, 1978.9, 1978.9),
              _HOPPER),
        _card("h100-pcie", "H100 PCIe 80GB", "sm_90a", 114, 1.755, 2039, 80, 50, 51.2, (756, 378, 1513, 1513), _HOPPER),
        _card("h200", "H200 SXM 141GB", "sm_90a", 132, 1.83, 4800, 141, 50, 66.9, (989.4, 494.7, 1978.9, 1978.9),
              "NVIDIA H200 data sheet"),
        _card("a100", "A100 SXM4 80GB", "sm_80", 108, 1.41, 2039, 80, 40, 19.5, (312, 156, 0, 624),
              "NVIDIA A100 Tensor Core GPU Architecture whitepaper, table 1; memory: A100 80GB data sheet"),
        _card("a10", "A10", "sm_86", 72, 1.695, 600, 24, 6, 31.2, (125, 62.5, 0, 250), "NVIDIA A10 data sheet"),
        _card("l4", "L4", "sm_89", 58, 2.04, 300, 24, 48, 30.3, (121, 60, 242, 242), "NVIDIA L4 data sheet"),
        _card("l40s", "L40S", "sm_89", 142, 2.52, 864, 48, 96, 91.6, (362, 183, 733, 733), "NVIDIA L40S data sheet"),
        _card("rtx3090", "GeForce RTX 3090", "sm_86", 82, 1.695, 936, 24, 6, 35.6, (71, 35.6, 0, 284),
              "NVIDIA Ampere GA102 GPU Architecture whitepaper, table 9"),
        _card("rtx4090", "GeForce RTX 4090", "sm_89", 128, 2.52, 1008, 24, 72, 82.6, (165.2, 82.6, 330.3, 660.6),
              "NVIDIA Ada GPU Architecture whitepaper, table 2"),
        _card("rtx5090", "GeForce RTX 5090", "sm_120", 170, 2.407, 1792, 32, 96, 104.8, (209.5, 104.8, 419, 838),
              "NVIDIA RTX Blackwell GPU Architecture whitepaper, table 1"),
        _card("b200", "B200 SXM 192GB", "sm_100", 148, 1.86, 8000, 192, 126, 75, (2250, 1125, 4500, 4500),
              "NVIDIA DGX B200 data sheet (a GPU's eighth); multiprocessors and clock as the driver tells them"),
    )
}  # fmt: skip

# the commonest card of each architecture, for choices that know no card
USUAL = {80: "a100", 86: "a10", 89: "l40s", 90: "h100", 100: "b200", 120: "rtx5090"}


def card(name: str) -> Card:
    """A card by its name, or the description in a JSON file, whose path ends with ``.json``.

    A description has ``title`` and ``arch``, the numbers of ``Card``, and ``tensor`` with rates by type; what it lacks
    is that of the card it names as ``like``. Raises UsageError for an unknown name, and for a description that makes no
    sense.
    """
    if name.endswith(".json"):
        return _described(Path(name))
    found = CARDS.get(name.lower())
    if found is None:
        raise UsageError(
            f"unknown card {name!r}: known are {', '.join(CARDS)}",
            hint='describe another one in a file: {"title": ..., "like": "a100", "memory": ...}, and name NAME.json',
        )
    return found


def _described(path: Path) -> Card:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the card's description {str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"the card's description {str(path)!r} is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise UsageError(f"the card's description {str(path)!r} is not an object")
    known = {"name", "title", "arch", "like", "tensor", "source", *NUMBERS}
    if odd := sorted(given.keys() - known):
        raise UsageError(f"{path}: a card has no {odd[0]!r}; it has {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    if "like" in given:
        base = card(str(given["like"]))
        values = {n: getattr(base, n) for n in ("arch", "tensor", *NUMBERS)}
    for n in NUMBERS:
        if n in given:
            values[n] = _positive(path, n, given[n])
    tensor = given.get("tensor", values.get("tensor", {}))
    if not isinstance(tensor, Mapping) or (odd := sorted(set(tensor) - set(TYPES))):
        raise UsageError(f"{path}: tensor has rates by type: {', '.join(TYPES)}")
    values["tensor"] = {t: _positive(path, f"tensor.{t}", rate) for t, rate in tensor.items()}
    values["arch"] = str(given.get("arch", values.get("arch", "")))
    if parse_arch(values["arch"]) is None:
        raise UsageError(f"{path}: {values['arch']!r} is not an architecture, such as sm_90a")
    if missing := [n for n in NUMBERS if n not in values]:
        raise UsageError(f"{path}: the card has no {missing[0]!r}", hint='give it, or "like" with the name of a card')
    values["multiprocessors"] = int(values["multiprocessors"])
    title = str(given.get("title", path.stem))
    return Card(name=str(given.get("name", path.stem)), title=title, source=str(given.get("source", path)), **values)


def _positive(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise UsageError(f"{path}: {name} is a positive number, not {value!r}")
    return float(value)


def usual_card(arch: str) -> Card:
    """The commonest card of the newest architecture that runs code for ``arch``'s and is no newer."""
    number = (parse_arch(arch) or (80, ""))[0]
    return CARDS[USUAL[max((a for a in USUAL if a <= number), default=80)]]
