"""A part of PyTorch's own table of operators really compiled and compared; docs/torch-support.md states what all give.

``python tests/torch/opinfo.py --document`` measures every entry and writes the document.
"""

from __future__ import annotations

import collections
import logging
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence

import pytest
import torch
from opinfo import DOCUMENT, DTYPES, MEANING, Outcome, entries, listed, measure

SAMPLES = 2
PARTS = 80  # the quick tier runs one of them, the slow tier all


def _part(name: str) -> int:
    return zlib.crc32(name.encode()) % PARTS


@pytest.fixture(autouse=True)
def quiet(untimed_guards: None) -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
    torch._dynamo.reset()


def _problems(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    return {f"{o.name} {o.dtype}": o.wrong + o.errors for o in outcomes if o.wrong or o.errors}


def _found(name: str, status: str | None) -> Outcome:
    """An entry in float32 on the simulator, by one of its samples, if that has the status; else by all.

    By all in any case with ``ARCWELD_EVERY=1``.
    """
    if not os.environ.get("ARCWELD_EVERY"):
        found = measure(name, torch.float32, SAMPLES, "sim", alone=True)
        if found.wrong or found.errors or MEANING[found.status] == status:
            return found
    return measure(name, torch.float32, SAMPLES, "sim")


def _check(names: Sequence[str]) -> None:
    """The entries are right, and have the status that the document gives them."""
    given = listed()
    found = [_found(name, given.get(name)) for name in names]
    assert _problems(found) == {}
    if torch.__version__.split("+")[0] in DOCUMENT.read_text(encoding="utf-8"):  # another version has other entries
        assert {o.name: given.get(o.name) for o in found} == {o.name: MEANING[o.status] for o in found}


def test_a_part_in_f32() -> None:
    _check([name for name in entries() if _part(name) == 0])


def test_one_entry_in_every_type() -> None:
    """What is computed in 16 bits, f64, integers and bools agrees with eager, by the registry's references."""
    names = [name for name in entries() if _part(name) == 1]
    found = [measure(name, dtype, 1, "reference") for name in names for dtype in DTYPES[1:]]
    assert _problems(found) == {}
    assert sum(o.compared for o in found) > len(names)


@pytest.mark.slow
def test_fourier_transforms_of_complex_numbers() -> None:
    """Every entry of torch.fft, and stft, by the registry's references; all are compiled."""
    names = [n for n in entries() if n.startswith("fft.") or n in ("stft", "istft", "view_as_real")]
    found = [measure(name, torch.complex64, SAMPLES, "reference") for name in names]
    assert _problems(found) == {}
    assert {o.name: o.status for o in found if o.status not in ("compiled", "unsupported")} == {}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, PARTS))
def test_every_part_in_f32(part: int) -> None:
    _check([name for name in entries() if _part(name) == part])


def test_the_document_counts_its_rows() -> None:
    text, given = DOCUMENT.read_text(encoding="utf-8"), listed()
    for meaning, count in collections.Counter(given.values()).items():
        assert f"| {count} | {meaning} |" in text
