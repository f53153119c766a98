"""``estimate``: modelled times on cards that are not here, of models and of engines; checked by hand where one can."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_models import mlp, save_model
from onnx import helper as h

import arcweld
from arcweld.cli.app import main
from arcweld.compiler.cards import CARDS, card
from arcweld.driver.api import import_model
from arcweld.driver.estimate import estimate_engine, planned

N = 2048
Printed = Callable[..., str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Printed:
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")

    def run(*command: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main([*command]) == code
        found = capsys.readouterr()
        return found.err if code else found.out

    return run


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product of square matrices of 16-bit numbers."""
    path = tmp_path_factory.mktemp("estimate") / "square.onnx"
    halves(path, N)
    return path


def halves(path: Path, n: int) -> None:
    x, y = (h.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, [n, n]) for name in ("x", "y"))
    w = onnx.numpy_helper.from_array(np.zeros((n, n), np.float16), "w")
    graph = h.make_graph([h.make_node("MatMul", ["x", "w"], ["y"], name="product")], "square", [x], [y], [w])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), path)


def test_one_product_by_hand(square: Path, printed: Printed) -> None:
    """2 N^3 operations and 3 N^2 numbers of 16 bits; no more than the card's rate, no less than a third of it."""
    (h100, a100) = json.loads(printed("estimate", str(square), "--card=h100,a100", "--fp16", "--json"))
    product = max(h100["kernels"], key=lambda k: k["us"])
    assert product["flops"] == 2 * N**3
    assert product["bytes"] == 3 * N * N * 2
    assert product["floor_us"] >= 2 * N**3 / 989.4e12 * 1e6
    assert 0.3 < product["share_of_roofline"] < 1
    assert product["bound"] in ("tensor cores", "L2 cache", "shared memory")
    assert sum(product["parts_us"].values()) == pytest.approx(product["us"])
    assert a100["latency_ms"] > 2 * h100["latency_ms"]  # a third of the rate
    assert (h100["modelled"], h100["fits"], h100["launches"]) == (True, True, len(h100["kernels"]))
    assert h100["latency_ms"] == pytest.approx(sum(k["us"] for k in h100["kernels"]) / 1e3 + 4e-3)


def test_explain_adds_what_the_kernels_of_a_node_take(square: Path, printed: Printed) -> None:
    """The numbers are those of the estimate, of the kernel that computes the node."""
    (e,) = json.loads(printed("estimate", str(square), "--fp16", "--json"))
    (product,) = (k for k in e["kernels"] if k["template"] == "contract")
    text = printed("explain", str(square), "product", "--fp16", "--card=h100")
    assert "modelled for H100 SXM5 80GB, not measured:" in text
    (row,) = (line for line in text.splitlines() if product["kernel"] in line)
    share, gain = f"{100 * product['share_of_roofline']:.0f}", f"{product['gain_us']:.4g}"
    assert row.split()[:4] == ["1", f"{product['us']:.4g}", share, gain]
    assert product["bound"] in row
    assert "modelled" not in printed("explain", str(square), "product", "--fp16")
    assert "unknown card 'h1': known are h100" in printed("explain", str(square), "--card=h1", code=2)


def test_every_card_is_estimated(square: Path, printed: Printed) -> None:
    rows = json.loads(printed("estimate", str(square), f"--card={','.join(CARDS)}", "--fp16", "--json"))
    by_card = {r["card"]: r for r in rows}
    assert list(by_card) == list(CARDS)
    assert min(rows, key=lambda r: r["latency_ms"])["card"] in ("h100", "h200", "b200")
    for r in rows:
        assert r["latency_ms"] >= r["floor_ms"] > 0
        assert r["throughput_qps"] == pytest.approx(1e3 / r["latency_ms"])


def test_an_engine_and_its_model_have_the_same_estimate(tmp_path: Path, printed: Printed) -> None:
    model = mlp(tmp_path / "mlp.onnx")
    engine = tmp_path / "mlp.engine"
    printed(str(model), "-o", str(engine), "--shapes=x:64x16", "--arch=sm_80")
    (ours,) = json.loads(printed("estimate", str(engine), "--card=a100", "--json"))
    (models,) = json.loads(printed("estimate", str(model), "--card=a100", "--shapes=x:64x16", "--json"))
    assert ours["latency_ms"] == pytest.approx(models["latency_ms"])
    loaded = arcweld.load(engine, "sim")
    assert loaded.estimate("a100").seconds * 1e3 == pytest.approx(ours["latency_ms"])


def test_open_sizes(tmp_path: Path) -> None:
    data = planned(import_model(str(mlp(tmp_path / "mlp.onnx"))), "fp32", "sm_80")
    few, many = (estimate_engine(data, card("a100"), {"N": n}) for n in (1, 1 << 20))
    assert many.seconds > 10 * few.seconds
    assert many.launches[0].flops == (1 << 20) * 2 * 16 * 32


def test_a_gather_counts_what_it_reads(tmp_path: Path, printed: Printed) -> None:
    """Four rows of a table of a million: the table is not read."""
    node = h.make_node("Gather", ["table", "i"], ["y"], name="look")
    table = onnx.numpy_helper.from_array(np.zeros((1 << 20, 8), np.float32), "table")
    info = h.make_tensor_value_info
    graph = h.make_graph([node], "g", [info("i", onnx.TensorProto.INT64, [4])],
                         [info("y", onnx.TensorProto.FLOAT, [4, 8])], [table])  # fmt: skip
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9), tmp_path / "g.onnx")
    (found,) = json.loads(printed("estimate", str(tmp_path / "g.onnx"), "--json"))
    assert found["kernels"][0]["bytes"] < 1000
    assert found["weight_bytes"] == 8 << 22


def test_stages_say_what_is_not_in_it(tmp_path: Path, printed: Printed) -> None:
    nodes = [h.make_node("NonZero", ["x"], ["i"]), h.make_node("Cast", ["i"], ["f"], to=onnx.TensorProto.FLOAT)]
    path = save_model(tmp_path / "s.onnx", nodes, {"x": [6, 4]}, {"f": [2, "k"]})
    assert "not in it: what the host does between stages" in printed("estimate", str(path))


def test_the_printed_table(square: Path, printed: Printed) -> None:
    text = printed("estimate", str(square), "--fp16", "--price=2.5")
    assert text.startswith("modelled, not measured:\n")
    assert "H100 SXM5 80GB" in text
    assert "product" in text.splitlines()[-1] or "product" in text
    cost = float(text.splitlines()[2].split()[-1])
    (row,) = json.loads(printed("estimate", str(square), "--fp16", "--price=2.5", "--json"))
    assert cost == pytest.approx(row["latency_ms"] / 1e3 * 1e6 / 3600 * 2.5, rel=1e-3)


def test_a_described_card(square: Path, tmp_path: Path, printed: Printed) -> None:
    (tmp_path / "twice.json").write_text(json.dumps({"title": "Twice", "like": "h100", "memory": 1e15}))
    assert "Twice" in printed("estimate", str(square), f"--card={tmp_path / 'twice.json'}")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--card=gtx"], "unknown card 'gtx': known are h100"),
        (["--card="], "--card names no card"),
        (["--price=cheap"], "'cheap' is no price of an hour"),
        (["--price=-1"], "'-1' is no price of an hour"),
        (["--price=l4=1"], "'l4' is not one of the cards h100"),
    ],
)
def test_bad_input(more: list[str], message: str, square: Path, printed: Printed) -> None:
    assert message in printed("estimate", str(square), *more, code=2)


def test_engines_for_other_cards(tmp_path: Path, printed: Printed) -> None:
    model, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    halves(model, 256)
    printed(str(model), "-o", str(engine), "--arch=sm_90a")
    (tmp_path / "t4.json").write_text(json.dumps({"title": "T4", "like": "a100", "arch": "sm_75"}))
    other = printed("estimate", str(engine), f"--card={tmp_path / 't4.json'}", code=2)
    assert "the engine has no kernels for T4 (sm_75)" in other
    assert "an engine has its precision" in printed("estimate", str(engine), "--fp16", code=2)


def test_inspect_shows_the_same_times(tmp_path: Path, printed: Printed) -> None:
    model, engine = mlp(tmp_path / "mlp.onnx"), tmp_path / "mlp.engine"
    printed(str(model), "-o", str(engine), "--shapes=x:64x16", "--arch=sm_80")
    (estimated,) = json.loads(printed("estimate", str(engine), "--card=a100", "--json"))
    report = json.loads(printed("inspect", str(engine), "--card=a100", "--json"))
    assert [x["modelled"]["us"] for x in report["launches"]] == [k["us"] for k in estimated["kernels"]]
    text = printed("inspect", str(engine), "--card=a100")
    assert "modelled on A100 SXM4 80GB: " in text
    assert "modelled us" in text
    assert "modelled" not in printed("inspect", str(engine))
    assert "--card is for engines" in printed("inspect", str(model), "--card=a100", code=2)
