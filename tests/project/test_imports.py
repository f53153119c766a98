"""Who may import whom, read from the sources, and what an engine that merely runs drags in."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("compiler", "passes", "codegen", "runtime")
FRAMEWORKS = ("onnx", "onnxruntime", "onnxscript", "torch", "torchvision", "timm", "transformers")

# The driver: the only modules of compiler/ that may know all parts, because they tie them together.
DRIVER = (
    "compiler/api.py", "compiler/build.py", "compiler/evidence.py", "compiler/object_code.py", "compiler/promotion.py",
    "compiler/summary.py", "compiler/cli/", "compiler/torch/", "compiler/torch_backend.py",
)  # fmt: skip


def imports(path: Path, *, everywhere: bool) -> Iterator[tuple[str, int]]:
    """(module, line) of every import in a file; only those that run when it is imported unless ``everywhere``."""
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), everywhere)


def _imports(tree: ast.AST, everywhere: bool) -> Iterator[tuple[str, int]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, node.lineno) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((f"{node.module}.{a.name}", node.lineno) for a in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not everywhere:
            continue
        elif everywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(node, everywhere)


def offences(
    folder: str, forbidden: tuple[str, ...], *, everywhere: bool = True, but: tuple[str, ...] = ()
) -> list[str]:
    """Imports in ``folder`` of anything below ``forbidden``, as path:line module."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place.startswith(but or ("\0",)):
            continue
        for module, line in imports(path, everywhere=everywhere):
            if any(module == f or module.startswith(f + ".") for f in forbidden):
                found.append(f"{place}:{line} {module}")
    return found


def own(*parts: str) -> tuple[str, ...]:
    return tuple(f"arcweld.{p}" for p in parts)


def test_the_compilers_core_knows_no_other_part() -> None:
    assert offences("compiler", own("passes", "codegen", "runtime", "models"), but=DRIVER) == []


def test_passes_know_only_the_compilers_core() -> None:
    assert offences("passes", (*own("codegen", "runtime", "models"), *FRAMEWORKS, "cupy", "cuda")) == []


def test_code_generation_never_imports_the_runtime() -> None:
    assert offences("codegen", (*own("runtime", "passes", "models"), *FRAMEWORKS)) == []


def test_the_runtime_imports_neither_compiler_passes_nor_frameworks() -> None:
    driver = own(*(d.removesuffix("/").removesuffix(".py").replace("/", ".") for d in DRIVER))
    assert offences("runtime", (*own("passes", "codegen", "models", "compiler.onnx"), *driver)) == []
    assert offences("runtime", ("onnx", "onnxruntime", "jinja2", "typer", "rich")) == []
    assert offences("runtime", ("torch", "cupy", "cupy_backends", "cuda"), everywhere=False) == []


def test_each_importer_stays_with_its_framework() -> None:
    assert offences("compiler/onnx", ("torch", "onnxruntime", "arcweld.compiler.torch")) == []
    assert offences("compiler/torch", ("onnx", "onnxruntime", "arcweld.compiler.onnx")) == []
    assert offences("compiler", FRAMEWORKS, everywhere=False, but=("compiler/onnx/", "compiler/torch/")) == []


@pytest.mark.parametrize("part", PARTS)
def test_no_part_imports_tests_or_the_repository_by_path(part: str) -> None:
    assert offences(part, ("tests", "pytest", "hypothesis", "compiler", "passes", "codegen", "runtime", "models")) == []


def test_loading_an_engine_needs_no_compiler() -> None:
    script = (
        "import sys; from arcweld import Engine, load, InferenceSession; import arcweld.runtime.sim.device\n"
        "tools = ('onnx', 'torch', 'jinja2', 'typer', 'rich', 'cupy')\n"
        "own = ('arcweld.passes', 'arcweld.codegen')\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in tools or m.startswith(own)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# distributions whose modules have other names; NVRTC is found by CuPy, never imported
MODULES = {
    "cupy-cuda12x": ("cupy", "cupy_backends"), "cuda-bindings": ("cuda",), "nvidia-cuda-nvrtc-cu12": (),
    "protobuf": ("google",),
}  # fmt: skip
OPTIONAL = {"torch", "onnxruntime"}  # of the extras `torch` and `test`; only asked for by what needs them


def test_dependencies_are_used_and_what_is_used_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w.-]+", d) for d in project["dependencies"]]
    declared = {module for m in names if m is not None for module in MODULES.get(m[0], (m[0],))}
    files = [p for part in (*PARTS, "arcweld") for p in (ROOT / part).rglob("*.py")]
    used = {module.split(".")[0] for p in files for module, _ in imports(p, everywhere=True)}
    assert declared - used == set()
    assert used - declared - set(sys.stdlib_module_names) - OPTIONAL == {"arcweld"}
