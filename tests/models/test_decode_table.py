"""The table of a decode step's kernels: its bytes, against those counted by hand, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arcweld.compiler.dtypes import DType
from arcweld.compiler.options import Options
from arcweld.driver.build import in_regions, plan_parts
from arcweld.models import decode_table
from arcweld.models.decode_table import AS_PACKED, Decoder, instructions, layer, needed_bytes, rows_of, traffic
from arcweld.passes.pipeline import run_passes

SMALL = Decoder(hidden=64, heads=4, groups=2, head=16, ffn=96)
PUBLISHED = Path(__file__).parents[2] / "docs" / "benchmarks" / "decode-modelled.json"


def test_bytes_are_those_counted_by_hand() -> None:
    """Two sequences of 32 positions: every operand once, caches are appended to where they are."""
    fused = in_regions(run_passes(layer(SMALL, 2, 32), Options(disable=AS_PACKED)))
    (part,) = plan_parts([(None, fused)], ("sm_80",))
    found = [traffic(p.bound, p.sources[0]) for p in part.launches]
    x, cos_sin, at = 2 * 64 * 2, 2 * 2 * 16 * 2, 2 * 2 * 16 * 8
    step, caches, ffn = 2 * 2 * 16 * 2, 2 * (2 * 2 * 32 * 16 * 2), 2 * 96 * 2
    assert found[0] == (x + 64 * 2 + 64 * 128 * 2 + cos_sin + at, x + 2 * step)
    assert found[1] == (x + caches, x)
    assert found[2] == (x + 64 * 64 * 2 + x, x)
    assert found[3] == (x + 64 * 2 + 2 * 64 * 96 * 2, ffn)
    assert found[4] == (ffn + 64 * 96 * 2 + x, x)


def test_what_a_step_has_to_read() -> None:
    graph = layer(SMALL, 3, 32)
    weights = sum(w.data.nbytes for w in graph.weights.values())
    caches = sum(v.type.nbytes for v in graph.inputs if v.name in ("keys", "values"))
    assert needed_bytes(SMALL, 3, 32) == weights + caches
    assert all(not any(w.data.strides) for w in graph.weights.values())  # they take no memory


@pytest.mark.parametrize("name", [n for n, s in decode_table.STORAGES.items() if s.is_quantised])
def test_quantised_steps_read_what_is_stored(name: str) -> None:
    """Five kernels, which read the packed matrices with their scales, and no wider copy of them."""
    small, stored = Decoder(hidden=256, heads=4, groups=2, head=64, ffn=256), decode_table.STORAGES[name]
    graph = layer(small, 1, 32, stored)
    weights = sum(v.type.nbytes for n in graph.nodes for v in n.operands() if v.name in graph.weights and v.shape)
    caches = sum(v.type.nbytes for v in graph.inputs if v.name in ("keys", "values"))
    assert needed_bytes(small, 1, 32, stored) == weights + caches
    fused = in_regions(run_passes(graph, Options(disable=AS_PACKED)))
    (part,) = plan_parts([(None, fused)], ("sm_80",))
    assert len(part.launches) == 5
    read = sum(traffic(p.bound, p.sources[0])[0] for p in part.launches)
    others = 8 * 256 * 2 * 2 + 3 * 64 * 2 * 8  # activations between kernels; angles and positions
    assert weights + caches <= read <= weights + caches + others


def test_a_step_takes_five_kernels_without_spills() -> None:
    rows = rows_of(layer(SMALL, 2, 32))
    assert len(rows) == 5
    assert all(r.spills == 0 and r.registers > 0 for r in rows)
    assert "input norm" in rows[0].origin
    assert rows[4].modelled_us == pytest.approx((rows[4].read + rows[4].written) / 3.35e6)


def test_instructions_need_the_disassembler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert instructions(b"") == {}
    tool = tmp_path / "cuobjdump"
    text = "  /*0a10*/   @P0 HMMA.16816.F32.BF16 R4, R4, R6, RZ ;\n  /*0a20*/   UBLKCP.S.G [UR4], [UR6], UR8 ;\n"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{text}  /*0a30*/   @!UP1 HMMA.16816.F32 R4, R4, R6, RZ ;\nEND\n")
    (tmp_path / "nvdisasm").write_text("")
    for name in ("cuobjdump", "nvdisasm"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert instructions(b"") == {"UBLKCP": 1, "HMMA": 2}


def test_the_published_table_is_complete_and_near_the_least_traffic() -> None:
    report = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    steps = report["steps"]
    assert [(s["model"], s["weights"], s["rows"], s["context"]) for s in steps] == decode_table.cases()
    for s in steps:
        d, stored = decode_table.DECODERS[s["model"]], decode_table.STORAGES[s["weights"]]
        # of a small layer in 4 bits, the activations of 16 rows and the sums of divided keys are 4 %
        small = (s["model"], s["rows"], stored.dtype) == ("Llama-1B", 16, DType.U4)
        assert 1 <= s["ratio"] <= (1.04 if small else 1.03)
        assert s["weights_and_cache_bytes"] == needed_bytes(d, s["rows"], s["context"], stored)
        assert s["moved_bytes"] == sum(k["read"] + k["written"] for k in s["kernels"])
        assert not any(k["spills"] for k in s["kernels"])
    page = PUBLISHED.with_suffix(".md").read_text(encoding="utf-8")
    assert page == decode_table.page(report)
    assert "modelled, not measured" in page
    assert np.isclose(report["bandwidth_bytes_per_s"], 3.35e12)
