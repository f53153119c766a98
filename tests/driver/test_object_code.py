"""Which tactic a build takes, by what ptxas says of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cases_attention import Shape, attention_kernel
from cases_contract import matmul_kernel

from arcweld.codegen.kernel import BoundKernel
from arcweld.codegen.nvrtc.cache import DiskCache
from arcweld.codegen.nvrtc.compiler import Compiled, Job
from arcweld.codegen.templates.select import alternatives, sources
from arcweld.compiler.dtypes import DType
from arcweld.compiler.errors import CompileError
from arcweld.driver import object_code
from arcweld.driver.object_code import PlannedLaunch, compile_launches

SERIAL = ("ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",)
Verdict = tuple[int, tuple[str, ...]]
Verdicts = Sequence[Verdict]


def chosen(verdicts: Verdicts, others: Verdict, monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """The place among the tactics of the one that is taken, if ptxas says ``verdicts`` of the first and ``others``
    (bytes of spills, warnings) of the rest."""
    kernel = matmul_kernel(256, 256, 256, DType.F16, "mk,nk")
    first = sources(kernel, ["sm_90a"])[-1]
    tactics = [first.entry, *(s.entry for group in alternatives(kernel, first) for s in group)]

    def compile_many(jobs: Sequence[Job], **options: Any) -> list[Compiled]:
        done = []
        for job in jobs:
            place = tactics.index(job.name) if job.name in tactics else len(tactics)
            spills, warnings = verdicts[place] if place < len(verdicts) else others
            done.append(Compiled(job.name, job.arch, job.kind, b"", "", 128, 0, spills, warnings))
        return done

    monkeypatch.setattr(object_code, "compile_many", compile_many)
    bound = BoundKernel(kernel, {b.name: b.name for b in kernel.buffers}, ())
    planned, code = compile_launches([PlannedLaunch("product", bound, (first,))], ["sm_90a"], DiskCache(folder))
    ((_, name),) = code.cubins
    assert planned[0].sources[0].entry == name
    return tactics.index(name)


@pytest.mark.parametrize(
    ("verdicts", "place"),
    [
        ([(0, ())], 0),
        ([(40, ())], 0),  # ptxas spills a little where registers are free
        ([(400, ()), (200, ()), (0, ()), (0, ())], 2),
        ([(0, SERIAL), (0, ())], 1),
        ([(0, SERIAL), (400, ()), (8, ())], 2),
        ([(400, ()), (0, SERIAL), (300, ())], 2),
    ],
)
def test_a_better_tactic_takes_the_place(
    verdicts: Verdicts, place: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert chosen(verdicts, (500, ()), monkeypatch, tmp_path) == place


def test_a_kernel_that_is_serialised_whatever_the_tactic_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(CompileError, match="C7510"):
        chosen([], (0, SERIAL), monkeypatch, tmp_path)


@pytest.mark.parametrize(("spills", "wanted"), [(400, "mma"), (40, "wgmma")])
def test_where_every_wgmma_tactic_spills_portable_code_serves_that_architecture(
    spills: int, wanted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel = attention_kernel(Shape(b=8, h=16, s=512, t=512, d=64, dtype=DType.F16))
    portable, exact = sources(kernel, ["sm_90a"])
    _, portable_ones = alternatives(kernel, exact)
    best = portable_ones[1]  # the first one is the portable source itself: let that spill too

    def compile_many(jobs: Sequence[Job], **options: Any) -> list[Compiled]:
        bad = {j.name: 0 if j.name == best.entry or j.arch == "sm_80" else spills for j in jobs}
        return [Compiled(j.name, j.arch, j.kind, b"", "", 128, 0, bad[j.name], ()) for j in jobs]

    monkeypatch.setattr(object_code, "compile_many", compile_many)
    bound = BoundKernel(kernel, {b.name: b.name for b in kernel.buffers}, ())
    plan = [PlannedLaunch("attention", bound, (portable, exact))]
    planned, code = compile_launches(plan, ["sm_80", "sm_90a"], DiskCache(tmp_path))
    assert [s.arch for s in planned[0].sources] == ["sm_80", "sm_90a"]
    assert planned[0].sources[0] == portable
    chosen_entry = {"mma": best.entry, "wgmma": exact.entry}[wanted]
    assert set(code.cubins) == {("sm_80", portable.entry), ("sm_90a", chosen_entry)}
    assert set(code.ptx) == {portable.entry}


def test_an_architecture_whose_own_source_gives_way_to_the_portable_one_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel = attention_kernel(Shape(b=8, h=16, s=512, t=512, d=64, dtype=DType.F16))
    portable, exact = sources(kernel, ["sm_90a"])

    def compile_many(jobs: Sequence[Job], **options: Any) -> list[Compiled]:
        spills = {j.name: 0 if j.name == portable.entry else 400 for j in jobs}
        return [Compiled(j.name, j.arch, j.kind, b"", "", 128, 0, spills[j.name], ()) for j in jobs]

    monkeypatch.setattr(object_code, "compile_many", compile_many)
    bound = BoundKernel(kernel, {b.name: b.name for b in kernel.buffers}, ())
    planned, code = compile_launches(
        [PlannedLaunch("attention", bound, (portable, exact))], ["sm_80", "sm_90a"], DiskCache(tmp_path)
    )
    assert planned[0].sources == (portable,)
    assert set(code.cubins) == {("sm_80", portable.entry), ("sm_90a", portable.entry)}
