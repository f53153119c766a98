"""What builds choose without tuning, against measured products and convolutions: the tactics that templates rank."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from cases_contract import matmul_kernel
from cases_conv import Shape, conv_kernel

from arcweld.codegen.templates.contract import wgmma
from arcweld.codegen.templates.contract.problem import conv_problem, problem_of
from arcweld.codegen.templates.conv import wgmma as conv_wgmma
from arcweld.codegen.templates.tiling import product_tiling
from arcweld.compiler.dtypes import DType
from arcweld.compiler.expr import unary
from arcweld.models.calibrate import MEASURED

Rows = Sequence[Mapping[str, Any]]
DATA = json.loads((MEASURED / "kernels-h100.json").read_text(encoding="utf-8"))


def renderable(rows: Rows) -> list[Mapping[str, Any]]:
    """Those that are divided as the templates do: no parts of a block share k, threads store what others store so too.
    """
    own = [r for r in rows if r.get("groups", 1) == 1 and not r.get("halo")]
    plain = [r for r in own if not r["staged"]]
    return plain or own


def behind(rows: Rows, ordered: Sequence[wgmma.ContractWgmmaTactic]) -> Iterator[float]:
    """How far the first tactic in the template's order that was measured is behind the best measured one.

    Of a tile that was measured with several numbers of stages, the nearest counts. Nothing where fewer than two were
    measured, or none that the template knows.
    """

    def measured(t: wgmma.ContractWgmmaTactic) -> list[Mapping[str, Any]]:
        return [r for r in rows if tuple(r["tile"]) == (t.bm, t.bn) and r["split"] == t.split]

    found = [min(own, key=lambda r: abs(r["stages"] - t.stages)) for t in ordered if (own := measured(t))]
    if found and len(rows) > 1:
        yield found[0]["us"] / min(r["us"] for r in rows) - 1


def grouped(rows: Rows, *by: str) -> list[Rows]:
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for r in rows:
        found.setdefault(tuple(str(r[k]) for k in by), []).append(r)
    return [renderable(own) for own in found.values()]


def test_products_of_bytes_load_bytes() -> None:
    """A line of k is 128 numbers of 8 bits: tiles of 64 x 32 load 96 lines of 128 bytes, on tensor cores of that type.
    """
    for precision in ("int8", "f8e4m3fn x f8e5m2"):
        kernel = matmul_kernel(128, 256, 1024, DType.I8 if precision == "int8" else DType.F16, precision=precision)
        tiling = product_tiling(problem_of(kernel), "wgmma", (64, 32, 128), (64, 32), 4, 16)
        assert (tiling.dtype, tiling.loaded, tiling.steps) == (precision[0] + "8", 96 * 128, 8)


def test_the_choice_among_measured_products() -> None:
    """The measured best comes first for five of six, and never is the choice 6 % behind it.

    Of the others, two are less than 1 % behind. The worst is that of 8192 cubed, whose tactics were measured one after
    the other, while the clock changed.
    """
    found: list[float] = []
    for rows in grouped(DATA["products"], "m", "n", "k", "epilogue", "chained"):
        r = rows[0]
        kernel = matmul_kernel(r["m"], r["n"], r["k"], DType.F16, order="mk,nk", weight=True)
        if "GELU" in r["epilogue"]:
            (store,) = kernel.stores
            kernel = replace(kernel, stores=(replace(store, value=unary("tanh", store.value)),))
        found += behind(rows, wgmma.by_modelled_time(problem_of(kernel), "sm_90a"))
    assert len(found) >= 18
    assert sum(x == 0 for x in found) >= len(found) * 5 // 6
    assert sum(x < 0.01 for x in found) >= len(found) - 2
    assert max(found) < 0.06


def test_the_choice_among_measured_convolutions() -> None:
    """Behind the measured best by 2 % in the mean, and by 12 % at worst."""
    found: list[float] = []
    for rows in grouped(DATA["convolutions"], "batch", "out", "filter", "stride", "c", "k", "residual"):
        r = rows[0]
        size, taps = tuple(d * r["stride"] for d in r["out"]), (r["filter"],) * 2
        shape = Shape(r["batch"], size, r["c"], r["k"], taps, r["stride"], r["filter"] // 2)
        kernel = conv_kernel(shape, DType.F16, residual=r["residual"])
        if r["filter"] == r["stride"] == 1:
            ordered: Sequence[wgmma.ContractWgmmaTactic] = wgmma.by_modelled_time(conv_problem(kernel), "sm_90a")
        else:
            ordered = conv_wgmma.by_modelled_time(kernel, "sm_90a")
        found += behind(rows, ordered)
    assert len(found) >= 40
    assert np.mean(found) < 0.03
    assert max(found) < 0.13
