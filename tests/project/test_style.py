"""House rules that a linter does not know: templates, file sizes, module docstrings, paths of somebody's machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "arcweld", "compiler", "passes", "codegen", "runtime", "serving", "models", "examples", "tests", "docs", ".github",
)  # fmt: skip
TEMPLATES = sorted((ROOT / "codegen" / "templates").rglob("*.j2"))
HEADERS = sorted((ROOT / "codegen" / "include").glob("*.cuh*"))
MAX_LINES = 500


def files(*suffixes: str) -> list[Path]:
    """The project's own files with these suffixes."""
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
    found += [p for p in ROOT.iterdir() if p.suffix in suffixes]
    return sorted(p for p in found if p.is_file() and "__pycache__" not in p.parts)


def place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_templates_keep_to_the_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for word, reason in {
        r"\basm\b": "inline PTX belongs in codegen/include/prims.cuh, where the simulator has a twin",
        r"\{%": "Jinja blocks are written <% %>",
        r"extern\s+__shared__": "use DYN_SHARED",
        r"__activemask": "lanes that take part are named, never asked for",
        r"__ldg\b": "use the load primitives",
        r"cooperative_groups|#\s*include\s*<": "no third-party or toolkit headers",
        r"\t": "no tabs",
    }.items():
        assert not re.search(word, text), f"{word}: {reason}"
    if 'extern "C" __global__' in text:
        first = [line for line in text.splitlines() if line.startswith("//")]
        assert first, "a template tells what its kernel does"
        assert first[0].startswith("// {{ kernel.stem }}: "), "generated CUDA opens with its name and what it does"
    else:
        assert text.startswith(("<#", "//")), "a file of shared parts opens with a comment"


@pytest.mark.parametrize("path", HEADERS, ids=lambda p: p.name)
def test_headers_open_with_what_they_are_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").removeprefix("#pragma once\n").startswith(("//", "/*", "<#"))
    if not path.name.startswith(("prims", "wgmma")):
        assert not re.search(r"\basm\b", path.read_text(encoding="utf-8"))


def test_templates_are_files_not_strings() -> None:
    """CUDA in Python strings drifts apart; a kernel's text is only ever in codegen/templates."""
    for path in files(".py"):
        if place(path).startswith(("arcweld/", "compiler/", "passes/", "codegen/", "runtime/", "serving/")):
            text = path.read_text(encoding="utf-8")
            assert "__global__ void __launch_bounds__" not in text, place(path)


def test_files_are_short_enough_to_read() -> None:
    lines = {place(p): len(p.read_text().splitlines()) for p in files(".py", ".j2", ".cuh", ".h", ".cpp")}
    assert {k: n for k, n in lines.items() if n > MAX_LINES} == {}


def test_every_module_says_what_it_is_for() -> None:
    silent = [place(p) for p in files(".py") if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert silent == []


def test_no_paths_of_somebodys_machine_and_no_stray_hosts() -> None:
    machine = re.compile(r"""(?<![\w.)\]}*/~-])/(?:home|root|Users|work|tmp|opt|mnt|data)/\w""")
    host = re.compile(r"https?://([\w.-]+)")
    allowed = {"github.com", "onnx.ai", "pytorch.org", "docs.nvidia.com", "arxiv.org", "www.apache.org", "pypi.org"}
    allowed |= {"www.contributor-covenant.org", "keepachangelog.com", "semver.org", "127.0.0.1"}
    found = []
    for path in files(".py", ".md", ".toml", ".j2", ".cuh", ".h", ".cpp", ".cu", ".json", ".yml"):
        text = path.read_text(encoding="utf-8")
        for line, words in enumerate(text.splitlines(), 1):
            if machine.search(words) or set(host.findall(words)) - allowed:
                found.append(f"{place(path)}:{line} {words.strip()[:80]}")
    assert found == []


def test_no_file_holds_the_marks_of_a_merge() -> None:
    marks = re.compile(r"^(<{7} |>{7} |={7}$)", re.M)
    texts = [*files(".py", ".md", ".j2", ".cuh", ".h", ".cpp", ".toml", ".yml"), ROOT / "Makefile"]
    assert [place(p) for p in texts if marks.search(p.read_text(encoding="utf-8"))] == []
