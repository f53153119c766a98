"""Who may import whom, read from the sources, and what an engine that merely runs drags in."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_FOLDERS = ("arcweld", "compiler", "passes", "codegen", "runtime", "serving", "models")
FRAMEWORKS = ("onnx", "onnxruntime", "onnxscript", "torch", "torchvision", "timm", "transformers")

# The floors of the house, the ground first. A room imports from floors below its own and from itself: never from above,
# and never from another room of its floor. A module belongs to the room with the longest matching path.
FLOORS = (
    ("compiler",),  # the graph: dimensions, expressions, operators
    ("compiler/onnx", "compiler/torch", "passes", "codegen", "runtime"),
    ("arcweld/driver",),  # ties those together
    ("arcweld/report", "arcweld/debug", "serving"),  # what is known of an engine; why results are wrong; the server
    ("arcweld/cli", "arcweld/torch"),
    ("arcweld/model_explorer",),  # what another tool imports
    ("arcweld",),  # the names that users import
    ("models",),
)
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


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


def module_name(path: Path) -> str:
    """The import name of a file: its path in the repository, below ``arcweld``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "arcweld" else ("arcweld", *parts))


@functools.cache
def own_modules() -> dict[str, Path]:
    """Every module of the package, by import name."""
    files = [p for folder in PACKAGE_FOLDERS for p in (ROOT / folder).rglob("*.py")]
    return {module_name(p): p for p in files}


@functools.cache
def import_graph() -> nx.DiGraph:
    """Module -> module for every import, those inside functions and type-checking blocks too; edges hold the line."""
    graph = nx.DiGraph()
    graph.add_nodes_from(own_modules())
    for name, path in own_modules().items():
        for target, line in imports(path, everywhere=True):
            found = target if target in own_modules() else target.rpartition(".")[0]
            if found in own_modules() and found != name:
                graph.add_edge(name, found, line=line)
    return graph


def room(module: str) -> str:
    """The room that a module belongs to."""
    place = own_modules()[module].relative_to(ROOT).as_posix()
    return max((r for r in ROOMS if place.startswith(f"{r}/")), key=len)


def test_imports_lead_down_only() -> None:
    wrong = []
    for source, target, line in import_graph().edges(data="line"):
        above, below = room(source), room(target)
        if above != below and ROOMS[above] <= ROOMS[below]:
            wrong.append(f"{own_modules()[source].relative_to(ROOT)}:{line}: {above} imports {target} of {below}")
    assert wrong == []


def test_no_files_import_each_other_in_a_circle() -> None:
    circles = [sorted(c) for c in nx.strongly_connected_components(import_graph()) if len(c) > 1]
    assert circles == []


def test_every_module_has_a_room_and_every_room_has_modules() -> None:
    assert {room(m) for m in own_modules()} == set(ROOMS)


def offences(folder: str, forbidden: tuple[str, ...], *, everywhere: bool = True) -> list[str]:
    """Imports of ``forbidden`` modules or what is below them by the modules of a room, as path:line module."""
    found = []
    for name, path in sorted(own_modules().items()):
        if room(name) == folder:
            for module, line in imports(path, everywhere=everywhere):
                if any(module == f or module.startswith(f + ".") for f in forbidden):
                    found.append(f"{path.relative_to(ROOT).as_posix()}:{line} {module}")
    return found


@pytest.mark.parametrize("folder", ["compiler", "passes", "codegen"])
def test_the_middle_of_the_compiler_knows_no_framework(folder: str) -> None:
    assert offences(folder, FRAMEWORKS) == []


def test_the_runtime_needs_numpy_and_cupy_alone() -> None:
    found = offences("runtime", ("onnx", "onnxruntime", "jinja2", "typer", "rich", "networkx"))
    assert [f for f in found if not f.startswith("runtime/llm/chat_process.py:")] == []  # chat templates are Jinja
    assert offences("runtime", ("torch", "cupy", "cupy_backends", "cuda"), everywhere=False) == []


def test_each_importer_stays_with_its_framework() -> None:
    assert offences("compiler/onnx", ("torch", "onnxruntime")) == []
    assert offences("compiler/torch", ("onnx", "onnxruntime")) == []


def test_no_module_imports_tests_or_the_repository_by_path() -> None:
    by_path = ("tests", "pytest", "hypothesis", "compiler", "passes", "codegen", "runtime", "serving", "models")
    assert [o for r in ROOMS for o in offences(r, by_path)] == []


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
# of the extras `torch`, `test`, `bench`, `explorer`, `wandb`, `llm` and `serve`; only asked for by what needs them
OPTIONAL = {
    "torch", "onnxruntime", "model_explorer", "dacite", "wandb", "gguf", "tokenizers", "transformers",
    "fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client", "httpx", "llguidance",
}  # fmt: skip


def test_dependencies_are_used_and_what_is_used_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.match(r"[\w.-]+", d) for d in project["dependencies"]]
    declared = {module for m in names if m is not None for module in MODULES.get(m[0], (m[0],))}
    files = [p for name, p in own_modules().items() if room(name) != "models"]
    used = {module.split(".")[0] for p in files for module, _ in imports(p, everywhere=True)}
    assert declared - used == set()
    assert used - declared - set(sys.stdlib_module_names) - OPTIONAL == {"arcweld"}
