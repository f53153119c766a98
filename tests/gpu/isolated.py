"""Runs the GPU tests in processes of their own: ``python tests/gpu/isolated.py [pytest arguments]``.

A fault in a kernel makes every later call of its process fail, and a lost arrival hangs it for ever. So each of the
tests that try many kernels gets a process and a limit of time, and no mistake hides what the others would have said.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240.0  # seconds of one process
AT_ONCE = 3  # processes that share the GPU; files that measure time run alone
TOGETHER = ("test_prims_gpu.py", "test_runtime_gpu.py")  # files whose tests share one process, and come first
SHOWN = 40  # lines of a failure's output


def collected(arguments: Sequence[str]) -> list[str]:
    """The ids of all GPU tests."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "--collect-only", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode or not ids:
        sys.exit(f"no tests were collected:\n{done.stdout}{done.stderr}")
    return ids


def groups(ids: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Tests that share a process: first those to run one after another, then the others."""
    alone = [[i for i in ids if f"/{name}::" in i] for name in TOGETHER]
    rest = [[i] for i in ids if not any(i in group for group in alone)]
    return [group for group in alone if group], rest


def run(group: Sequence[str]) -> bool:
    """Runs one process and prints how it went; True for a pass (skipped tests pass)."""
    name = group[0] if len(group) == 1 else group[0].partition("::")[0]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-rs", "--no-header", *group], cwd=ROOT, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=LIMIT)
        verdict = "passed" if process.returncode == 0 else "FAILED"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        verdict = f"FAILED: not done after {LIMIT:.0f} s"
    lines = output.splitlines()
    shown = lines[-1:] if verdict == "passed" else lines[-SHOWN:]
    print(f"{name}: {verdict} ({time.monotonic() - started:.0f} s)", *shown, sep="\n    ", flush=True)
    return verdict == "passed"


def main(arguments: list[str]) -> int:
    """Runs everything; exit status 1 where something failed."""
    first, rest = groups(collected(arguments))
    passed = [run(group) for group in first]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        passed += pool.map(run, rest)
    print(f"{sum(passed)} of {len(passed)} groups of GPU tests passed")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
