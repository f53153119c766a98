"""What the documentation prints is what happens: its Python runs, its commands run, its lists are the code's."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnxruntime
import pytest
import torch
from cli_models import mlp
from onnx import TensorProto, helper, numpy_helper

from arcweld.cli.app import main
from arcweld.compiler.ops import composite_reduce, pointwise

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fenced(name: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(name), re.S | re.M)
    return [text for kind, text in blocks if kind == language]


def indented(name: str) -> list[str]:
    """The blocks of a page that are code by their indentation."""
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", text_of(name), re.M)
    return ["\n".join(line[4:] for line in b.splitlines()) for b in blocks if b.strip()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pages' files are: a model of images, with the names that the pages use, and inputs for it."""
    rng = np.random.default_rng(0)
    weights = {"conv.weight": rng.standard_normal((4, 3, 3, 3)), "fc.weight": rng.standard_normal((4, 5))}
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"], name="conv1", strides=[8, 8]),
        helper.make_node("Relu", ["c"], ["r"], name="relu1"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "fc.weight"], ["y"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes, "m", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    mlp(tmp_path / "mlp.onnx")
    np.save(tmp_path / "x.npy", rng.random((2, 3, 32, 32), np.float32))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCWELD_DEVICE", "sim")
    return tmp_path


# ------------------------------------------------------------------------------------------------------------ python


def test_python_of_the_readme(folder: Path) -> None:
    with_files, with_torch = fenced("README.md", "python")
    x = np.load("x.npy")
    names: dict[str, Any] = {"x": x, "w": np.ones((4, 5), np.float32)}
    exec(with_files, names)
    wanted = np.maximum(names["engine"].run({"x": x})["y"], -np.inf)
    np.testing.assert_array_equal(names["session"].run(None, {"x": x})[0].shape, wanted.shape)
    assert np.ptp(wanted, axis=1).max() <= 1e-3 * np.abs(wanted).max()  # all columns of the new weight are equal

    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
    names = {"torch": torch, "model": model}
    exec(with_torch, names)
    given = torch.rand(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(names["fast"](given), model(given), atol=2e-2, rtol=2e-2)


def test_python_of_the_page_on_debugging(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = fenced("docs/debugging.md", "python")
    exec(block, {})
    assert capsys.readouterr().out.splitlines()[1:] == ["None None", "frozenset()"]


def test_the_quickstart_runs_from_its_first_line_to_its_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder that has the page's files only after the page has made them."""
    for name in ("model.onnx", "mlp.onnx", "x.npy"):
        (folder / name).unlink()
    lines = [line.strip() for b in indented("docs/quickstart.md") for line in b.splitlines()]
    script = next(line for line in lines if line.startswith("python examples/"))
    _, path, *words = script.split()
    monkeypatch.setattr("sys.argv", [path, *words])
    runpy.run_path(str(ROOT / path), run_name="__main__")
    found = [c for line in lines for c in commands(line)]
    found += re.findall(r"`(onnx-to-engine [^`]+)`", text_of("docs/quickstart.md"))
    assert len(found) >= 8
    for line in found:
        words = shlex.split(line)[1:]
        assert main([*words, *QUICK.get(words[0], [])]) == 0, line
    names: dict[str, Any] = {}
    torch._dynamo.reset()
    with_file, *others = fenced("docs/quickstart.md", "python")
    exec(with_file, names)
    images = np.ones((2, 3, 32, 32), np.float32)
    want = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": images})[0]
    for got in (names["y"], names["engine"](images)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    for block in others:
        exec(block, names)
    np.testing.assert_allclose(names["bound"], want, rtol=1e-4, atol=1e-6)
    listed = text_of("docs/quickstart.md").partition("A session has")[2].partition(". The")[0]
    for method in re.findall(r"`(\w+)`", listed):
        assert callable(getattr(names["session"], method)), method
    with torch.no_grad():
        for got in (names["y"], names["z"]):
            torch.testing.assert_close(got, names["model"](names["x"]), rtol=1e-4, atol=1e-5)
    assert "ATen nodes in 1 compiled block, 0 left to PyTorch" in capsys.readouterr().out


def test_python_of_the_torch_page(folder: Path) -> None:
    ahead, open_lengths, state, complex_values, compiled = indented("docs/torch.md")
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4)).eval()
    x = torch.rand(2, 8)
    import arcweld

    names: dict[str, Any] = {"arcweld": arcweld, "torch": torch, "module": module, "model": module, "x": x}
    exec(ahead, names)
    assert (folder / "model.engine").is_file()
    with torch.no_grad():
        torch.testing.assert_close(names["y"], module(x), atol=2e-2, rtol=2e-2)
        exec(compiled, names)
        torch.testing.assert_close(names["y"], module(x), atol=2e-2, rtol=2e-2)

    class Filter(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(z) * 1j

    z = torch.randn(2, 6, dtype=torch.complex64)
    exec(complex_values, spectral := {"arcweld": arcweld, "torch": torch, "module": Filter(), "z": z})
    torch.testing.assert_close(spectral["y"], Filter()(z))

    class Decoder(torch.nn.Module):
        def forward(self, x: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            keys, values = torch.cat([key, x], 2), torch.cat([value, x], 2)
            return torch.nn.functional.scaled_dot_product_attention(x, keys, values)

    names["decoder"] = Decoder()
    names |= {"x": torch.rand(1, 2, 1, 8), "key": torch.rand(1, 2, 5, 8), "value": torch.rand(1, 2, 5, 8)}
    exec(open_lengths, names)
    for n in (0, 1, 9):
        given = names["x"], torch.rand(1, 2, n, 8), torch.rand(1, 2, n, 8)
        torch.testing.assert_close(names["engine"](*given), Decoder()(*given), atol=1e-5, rtol=1e-4)

    class Cached(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cache", torch.zeros(1, 8, 4))

        def forward(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            self.cache.index_copy_(1, position, token)
            return self.cache.sum(1)

    names |= {"decoder": Cached(), "token": torch.rand(1, 1, 4), "position": torch.tensor([0]), "length": 3}
    exec(state, names)
    torch.testing.assert_close(names["logits"], 3 * names["token"][:, 0], atol=1e-5, rtol=1e-4)
    assert not names["session"].read("cache").any()


def test_entries_of_the_page_about_operators_use_names_that_exist() -> None:
    """The examples are entries of the registry already, so they are only read, and their references tried."""
    for block in fenced("docs/add-an-op.md", "python"):
        seen: list[tuple[Any, ...]] = []

        def record(*args: Any, seen: list[tuple[Any, ...]] = seen, **_: Any) -> None:
            seen.append(args)

        names = {**vars(pointwise), **vars(composite_reduce), "pointwise": record, "_reduction": record}
        exec(block, names)
        assert seen
        for entry in seen:
            functions: list[Callable[..., Any]] = [a for a in entry if callable(a)]
            assert len(functions) == 2, entry


# ---------------------------------------------------------------------------------------------------------- commands


def commands(block: str) -> list[str]:
    """The command lines of a block, without prompts and remarks."""
    lines = [line.removeprefix("$ ").partition("  #")[0].strip() for line in block.splitlines()]
    return [line for line in lines if line.startswith("onnx-to-engine ")]


QUICK = {"bench": ["--iterations=1", "--warmUp=0", "--duration=0"]}


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md", "docs/debugging.md"])
def test_commands_run_as_they_are_printed(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [c for b in indented(page) for c in commands(b)]
    assert len(found) >= 4
    for line in found:
        words = shlex.split(line)[1:]
        assert main([*words, *QUICK.get(words[0], [])]) == 0, line
    assert capsys.readouterr().out


def test_printed_results_are_the_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [b for b in fenced("README.md", "") if b.startswith("$ onnx-to-engine explain")]
    line, _, printed = block.partition("\n")
    assert main(shlex.split(line)[2:]) == 0
    assert capsys.readouterr().out == printed


def test_files_that_pages_name_exist() -> None:
    folders = "arcweld|compiler|passes|codegen|runtime|serving|models|tests|docs"
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.*-]*\.(?:py|md|j2|cuh|h|cu))\b", text)
        links = re.findall(r"\]\(([^)#:]+)\)", text)
        for name, base in [(n, ROOT) for n in named] + [(n, page.parent) for n in links]:
            assert list(base.glob(name)), f"{page.name} names {name}"


# ------------------------------------------------------------------------------------------------------------- lists


def test_the_readme_lists_what_is_missing_of_onnx() -> None:
    """Every operator of the standard has a handler, a body of other operators, or a place in the README's list."""
    from arcweld.compiler.onnx.handlers.strings import STRINGS
    from arcweld.compiler.onnx.handlers.table import HANDLERS, handler
    from arcweld.compiler.onnx.visitor import _BUILT_IN

    text = text_of("README.md").replace("\n", " ")
    match = re.search(r"these are missing: (.*?)\. Shapes, branches", text)
    assert match is not None
    listed = set(re.findall(r"\b[A-Z]\w+", match[1]))
    handler("", "Relu")  # fills the table
    known = {op for domain, op in (*HANDLERS, *STRINGS) if domain == ""} | set(_BUILT_IN)
    schemas = {s.name: s for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated}
    bodies = {n for n, s in schemas.items() if s.has_function or s.has_context_dependent_function}
    missing = {n for n in schemas if n not in known | bodies}
    assert missing == listed


def test_the_readme_counts_the_operators_of_pytorch() -> None:
    from arcweld.compiler.torch.table import handled

    match = re.search(r"more than (\d+) ATen overloads", text_of("README.md"))
    assert match is not None
    assert 0 < len(handled()) - int(match[1]) < 50


def test_the_limits_that_the_security_page_states_are_the_codes() -> None:
    from arcweld.compiler.onnx import control, visitor
    from arcweld.runtime import container, engine_file, expressions, validate

    text = " ".join(text_of("SECURITY.md").split())
    for words in (
        f"at most {container.MAX_MEMBERS:,} members",
        f"at most {engine_file.MAX_JSON >> 20} MiB",
        f"at most {validate.MAX_RANK} dimensions",
        f"{validate.MAX_THREADS:,} threads, {validate.MAX_SHARED >> 10} KiB of shared memory",
        f"clusters of {validate.MAX_CLUSTER}, {validate.MAX_PARAMS:,} bytes of parameters",
        f"{expressions.MAX_TEXT:,} characters, {expressions.MAX_NODES:,} nodes and {expressions.MAX_DEPTH} levels",
        f"nest at most {control.MAX_DEPTH} levels deep",
        f"expands to at most {visitor.MAX_VISITS:,} nodes, loops and scans to {control.MAX_ITERATIONS} turns",
    ):
        assert words in text, words
