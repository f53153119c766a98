"""The committed suite of modelled workloads: complete, what this tree makes of it, and floors counted by hand."""

from __future__ import annotations

import json

import pytest

from arcweld.compiler.cards import card
from arcweld.compiler.errors import UsageError
from arcweld.driver.build import build_graph
from arcweld.driver.estimate import estimate_engine
from arcweld.models import modelled_suite
from arcweld.models.calibrate import MEASURED
from arcweld.models.modelled_suite import differences, stored, suite, workloads

QUICK = ("mobilenet_v2_b1", "llama_1b_decode_layer_bf16_b1", "llama_1b_decode_layer_int4_g128_b1")


def test_all_workloads_are_in_the_file() -> None:
    rows = stored()
    assert list(rows) == list(workloads())
    assert all(r["modelled_ms"] > r["floor_ms"] > 0 for r in rows.values())


@pytest.mark.slow
def test_the_file_is_what_this_tree_makes(capsys: pytest.CaptureFixture[str]) -> None:
    """A change of kernels moves these rows: write the file anew, and say in the commit what it changes."""
    found = differences(stored(), suite(QUICK))
    assert not found, "\n".join([*found, "python -m arcweld.models.modelled_suite writes them"])


def test_a_decode_layer_by_hand() -> None:
    """Weights and caches of one layer of Llama-1B: 2048 x (3072 + 2048 + 3 x 8192) and 2 x 8 x 512 x 64 numbers."""
    matrices = 2048 * (2048 + 2 * 8 * 64) + 2048 * 2048 + 3 * 2048 * 8192
    needed = 2 * (matrices + 2 * 2048 + 2 * 8 * 512 * 64)
    row = stored()["llama_1b_decode_layer_bf16_b1"]
    assert needed < row["moved_bytes"] < 1.02 * needed
    assert row["floor_ms"] == pytest.approx(row["moved_bytes"] / 3.35e12 * 1e3, rel=0.01)
    packed = stored()["llama_1b_decode_layer_int4_g128_b1"]
    assert packed["weight_bytes"] == pytest.approx(matrices * (0.5 + 2 / 128), rel=0.001)


@pytest.mark.slow
def test_a_decode_layer_of_4_bits_against_measured_kernels() -> None:
    """Its attention to 512 keys and its product of 2048 x 8192 were measured alone, in kernels of the same kind."""
    graph, options = workloads()["llama_1b_decode_layer_int4_g128_b1"]()
    data = build_graph(graph, options, compile_kernels=False).data
    launches = estimate_engine(data, card("h100"), {}).launches
    rows = json.loads((MEASURED / "kernels-h100.json").read_text(encoding="utf-8"))
    (keys,) = (r["us"] for r in rows["decode"] if r["keys"] == 512 and r["chained"])
    (product,) = (r["us"] for r in rows["streams"] if r["us"] == 6.26 and "4 bits" in r["what"])
    (attention,) = (x.modelled for x in launches if x.template == "attention")
    (down,) = (x.modelled for x in launches if x.flops == 2 * 2048 * 8192)
    assert attention.us == pytest.approx(keys, rel=0.15)
    assert down.us == pytest.approx(product, rel=0.06)
    assert down.bound == "arithmetic"


def test_a_prefill_layer_by_hand() -> None:
    """Products of 512 rows with the same matrices, and half of 32 heads' products of 512 x 512 x 64."""
    matrices = 2048 * (2048 + 2 * 8 * 64) + 2048 * 2048 + 3 * 2048 * 8192
    rows = stored()
    for storage in ("bf16", "int8", "fp8", "int4_g128", "int4_g32"):
        row = rows[f"llama_1b_prefill_layer_{storage}_s512"]
        assert row["floor_ms"] > 2 * 512 * matrices / 989.4e12 * 1e3
        assert row["floor_ms"] < 1.4 * 2 * 512 * matrices / 989.4e12 * 1e3
        decode = rows[f"llama_1b_decode_layer_{storage}_b1"]
        assert row["weight_bytes"] == decode["weight_bytes"]


def test_what_a_revision_changed_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["modelled_suite", "--since", "no-such-revision"])
    with pytest.raises(UsageError, match=r"'no-such-revision' has no modelled\.json"):
        modelled_suite.main()
    assert capsys.readouterr().out == ""


def test_differences_are_said() -> None:
    before = {"a": {"kernels": 4, "modelled_ms": 2.0}}
    assert differences(before, before) == []
    assert differences(before, {"a": {"kernels": 5, "modelled_ms": 2.0}}) == ["a: kernels 4 -> 5 (+25.0%)"]
    assert differences({}, {"b": {"kernels": 5}}) == ["b: kernels None -> 5"]
    assert modelled_suite.CARD == "h100"
