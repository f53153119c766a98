"""Machines that lack something: NVRTC, a C++ compiler, disk space, or a process that lives until the end."""

from __future__ import annotations

import errno
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from cli_models import mlp

from arcweld.cli.app import main
from arcweld.codegen.nvrtc import cache
from arcweld.codegen.nvrtc import compiler as nvrtc
from arcweld.compiler import paths
from arcweld.compiler.errors import EnvironmentError_
from arcweld.driver.api import compile as compile_model
from arcweld.runtime.engine import load
from arcweld.runtime.sim import build

Shown = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return mlp(tmp_path / "mlp.onnx")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new cache folder: nothing is already compiled."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(folder))
    return folder


def engines(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix == ".engine")


def test_no_nvrtc(model: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown) -> None:
    def missing() -> None:
        raise RuntimeError("libnvrtc.so.12: cannot open shared object file")

    monkeypatch.setattr(nvrtc, "binding", missing)
    nvrtc.version.cache_clear()
    try:
        assert main([str(model), "-o", str(model.parent / "x.engine"), "--arch=sm_80", "--device=sim"]) == 4
        shown = capsys.readouterr().err
        assert "libnvrtc" in shown
        assert "hint: pip install" in shown
        assert engines(model.parent) == []
        assert main(["doctor"]) == 4
        assert "miss NVRTC" in capsys.readouterr().out
    finally:
        nvrtc.version.cache_clear()


def test_no_compiler_for_the_simulator(
    model: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    monkeypatch.setenv("PATH", str(empty_cache))
    monkeypatch.delenv("CXX", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ziglang" else find(name, *a))
    build.toolchain.cache_clear()
    try:
        with pytest.raises(EnvironmentError_, match=r"C\+\+ compiler") as caught:
            compile_model(model, device="sim")
        assert caught.value.hint
        assert main(["run", str(model), "--device=sim"]) == 4
        assert "hint: " in capsys.readouterr().err
    finally:
        build.toolchain.cache_clear()


def test_no_gpu_is_never_replaced_silently(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcweld.runtime.devices.gpu_count", lambda: 0)
    with pytest.raises(EnvironmentError_) as caught:
        compile_model(model, device="cuda")
    assert caught.value.hint


def test_a_cache_folder_that_cannot_be_made(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCWELD_CACHE_DIR", str(model / "below-a-file"))
    with pytest.raises(EnvironmentError_, match="cache folder") as caught:
        compile_model(model, device="sim")
    assert "ARCWELD_CACHE_DIR" in str(caught.value)


def test_a_user_without_a_home(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ARCWELD_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert main(["run", str(model), "--device=sim"]) == 4
    assert main(["doctor"]) == 4


def test_a_cache_folder_that_cannot_be_written(
    model: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Shown
) -> None:
    """The simulator needs its cache; what NVRTC keeps there is only made again. (The tests may run as root.)"""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cache, "replacing", refuse)  # NVRTC's entries
    monkeypatch.setattr(paths.secrets, "token_hex", lambda n: "x" * 300)  # the simulator's: too long a name
    with pytest.raises(EnvironmentError_, match="cannot be written") as caught:
        compile_model(model, device="sim")
    assert "ARCWELD_CACHE_DIR" in str(caught.value)
    assert main(["run", str(model), "--device=sim"]) == 4
    monkeypatch.setattr(paths.secrets, "token_hex", lambda n: "1234")
    words = [str(model), "-o", str(model.parent / "x.engine"), "--arch=sm_80", "--device=sim", "--verify=off"]
    assert main(words) == 0
    assert engines(model.parent) == ["x.engine"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    capsys.readouterr()
    assert main(["doctor"]) == 4
    assert "miss cache: no permission to write to" in capsys.readouterr().out


def test_what_is_no_file_is_not_replaced(model: Path, capsys: Shown) -> None:
    pipe, link, real = (model.parent / n for n in ("pipe", "link.engine", "real.engine"))
    os.mkfifo(pipe)
    words = [str(model), "--arch=sm_80", "--device=sim", "--verify=off", "-o"]
    assert main([*words, str(pipe)]) == 2
    assert "it is not a file" in capsys.readouterr().err
    engine = compile_model(model, device="sim", verify="off")
    with pytest.raises(EnvironmentError_, match="it is not a file"):
        engine.save(pipe)
    assert pipe.is_fifo()
    link.symlink_to(real)
    assert main([*words, str(link)]) == 0
    assert main(["run", str(model), "--device=sim", f"--exportOutput={model.parent / 'y.npz'}"]) == 0
    assert link.is_symlink()
    load(real, "sim")
    umask = os.umask(0)
    os.umask(umask)
    for made in (real, model.parent / "y.npz"):
        assert made.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("older", [False, True])
def test_a_disk_that_is_full(model: Path, older: bool, capsys: Shown) -> None:
    """A file size limit stands in for the full disk: the write fails half-way, after some bytes are down."""
    target = model.parent / "x.engine"
    words = [str(model), "-o", str(target), "--arch=sm_80", "--device=sim", "--verify=off"]
    assert main(words) == 0
    size, whole = target.stat().st_size, target.read_bytes()
    if not older:
        target.unlink()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        code = main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert code == 4
    assert "cannot write the engine file" in capsys.readouterr().err
    assert sorted(p.name for p in model.parent.iterdir()) == ["mlp.onnx"] + ["x.engine"] * older
    if older:
        assert target.read_bytes() == whole


KILLED = """
    import os, signal, sys
    from arcweld.cli.app import main
    {where} = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
    main(sys.argv[1:])
"""


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "sys.modules['arcweld.driver.api'].verify_build"])
@pytest.mark.parametrize("older", [False, True])
def test_a_killed_build_leaves_no_half_engine(model: Path, where: str, older: bool) -> None:
    target = model.parent / "x.engine"
    words = [str(model), "-o", str(target), "--arch=sm_80", "--device=sim"]
    if older:
        assert main([*words, "--verify=off"]) == 0
    script = textwrap.dedent(KILLED.format(where=where))
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert engines(model.parent) == ["x.engine"] * older
    if older:
        load(target, "sim")
    assert main([*words, "--verify=off"]) == 0  # and the next build is not hindered
    load(target, "sim")


SLOW_COMPILER = """#!/bin/sh
case "$*" in *--version*) echo "slow 1.0"; exit 0;; esac
echo started > "$TMPDIR/object.o"
sleep 60 & wait
"""


def test_a_terminated_command_leaves_nothing(model: Path, empty_cache: Path) -> None:
    compiler = model.parent / "slow-g++"
    compiler.write_text(SLOW_COMPILER)
    compiler.chmod(0o755)
    environment = {**os.environ, "CXX": str(compiler)}
    command = [sys.executable, "-m", "arcweld", "run", str(model), "--device=sim"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 30
        while not list(empty_cache.glob("sim/.work-*/object.o")) and time.monotonic() < end:
            time.sleep(0.02)
        assert list(empty_cache.glob("sim/.work-*"))
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert list((empty_cache / "sim").iterdir()) == []


POOL = """
    import sys
    from arcweld.codegen.nvrtc.compiler import Job
    from arcweld.codegen.nvrtc.pool import CompilePool
    pool = CompilePool(2)
    source = '#include "prims.cuh"\\nextern "C" __global__ void k%d(int* p) { p[0] = %d; }'
    pool.run([Job(source % (i, i), "sm_80", "k%d" % i) for i in range(8)])
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_workers_end_with_the_process_that_started_them(empty_cache: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(POOL)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert workers
        os.kill(parent.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while time.monotonic() < end and any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers):
        time.sleep(0.05)
    assert [w for w in workers if w.is_running() and w.status() != psutil.STATUS_ZOMBIE] == []
