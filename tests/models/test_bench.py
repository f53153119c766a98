"""The benchmark's bookkeeping: what is measured stays, whatever fails. The measurements need a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arcweld.compiler.errors import EnvironmentError_
from arcweld.models import bench

MEASURED = {
    "arcweld_graph_ms": 1.0, "arcweld_call_ms": 1.0, "torch_graph_ms": 2.0, "ratio_to_torch_graph": 2.0, "kernels": 3,
    "relative_error": 0.001, "build_s": 1.0,
}  # fmt: skip


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(bench, "gpu_count", lambda: 1)
    monkeypatch.setattr(bench, "environment", lambda: {"gpu": "NVIDIA Some Card"})
    monkeypatch.setattr(bench, "ceilings", lambda: {"copy_bytes_per_s": 1.0, "f16_flops": 1.0})
    monkeypatch.setattr(bench, "bench_model", lambda name, profile, limits: dict(MEASURED, name=name))
    monkeypatch.setattr(bench, "bench_kernels", lambda limits: {"softmax": {"us": 1.0}})
    monkeypatch.setattr(bench, "bench_host", lambda: {"engine_call_us": 1.0})
    monkeypatch.setattr(bench, "bench_load", lambda: {"load_s": 1.0})
    return monkeypatch


def test_a_whole_run_is_one_file(card: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bench.main(["--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == "nvidia-some-card.json"
    report = json.loads(path.read_text())
    assert [report["models"][name]["name"] for name in bench.CASES] == list(bench.CASES)
    assert report["load"] == {"load_s": 1.0}


def test_a_failure_costs_only_its_own_numbers(card: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bench.main(["--out", str(tmp_path)]) == 0
    before = (tmp_path / "nvidia-some-card.json").read_bytes()

    def broken(name: str, profile: bool, limits: dict[str, float]) -> dict[str, Any]:
        if name == "vit_b16_b1":
            raise RuntimeError("an illegal memory access was encountered")
        return dict(MEASURED)

    card.setattr(bench, "bench_model", broken)
    assert bench.main(["--out", str(tmp_path)]) == 1
    partial = json.loads((tmp_path / "nvidia-some-card.partial.json").read_text())
    assert "illegal memory" in partial["models"]["vit_b16_b1"]["error"]
    assert partial["models"]["resnet50_b1"]["kernels"] == 3
    assert partial["host"] == {"engine_call_us": 1.0}
    assert (tmp_path / "nvidia-some-card.json").read_bytes() == before
    assert bench.main(["--out", str(tmp_path), "--only", "bert_b1_s128"]) == 0
    assert (tmp_path / "nvidia-some-card.json").read_bytes() == before


def test_without_a_gpu_it_says_so(card: pytest.MonkeyPatch) -> None:
    card.setattr(bench, "gpu_count", lambda: 0)
    with pytest.raises(EnvironmentError_, match="needs an NVIDIA GPU"):
        bench.main([])
