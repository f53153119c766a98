"""Host threads of the simulator and what a process does: it forks, ends, runs short of memory and cores."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from cli_models import mlp
from thread_kernels import works

HERE = Path(__file__).parent
PRELUDE = """
import os, sys, threading, time
sys.path[:0] = {paths!r}
from demo_kernels import layernorm
from thread_kernels import blocks, counting, is_right, is_shared, works
from arcweld.runtime.sim.device import SimDevice
"""


def script(text: str) -> str:
    """Runs Python text in a new process and returns its output. A hang is a failure."""
    text = PRELUDE.format(paths=[str(HERE), *sys.path]) + textwrap.dedent(text)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------ fork


def test_fork_with_idle_workers() -> None:
    script("""
        assert is_shared()
        for _ in range(5):
            child = os.fork()
            if not child:
                os._exit(0 if is_shared() and works() else 1)  # by the child's own workers
            assert os.waitpid(child, 0)[1] == 0
        assert is_shared()
    """)


@pytest.mark.parametrize("checked", [False, True])
def test_fork_while_other_threads_launch(checked: bool) -> None:
    script(f"""
        stop, demo, device = threading.Event(), layernorm(), SimDevice(checked={checked})
        assert works() and demo.passes(device)  # all is imported: a fork while a thread imports is Python's own trouble
        def again():
            while not stop.is_set():
                assert demo.passes(device) if {checked} else works()
        others = [threading.Thread(target=again, daemon=True) for _ in range(3)]
        for thread in others: thread.start()
        for _ in range(10):
            child = os.fork()
            if not child:
                os._exit(0 if works() and demo.passes(device) else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in others: thread.join()
    """)


def test_workers_of_a_multiprocessing_pool() -> None:
    assert works()
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map_async(works, [1, 2, 4, 4, 4, 4]).get(timeout=100) == [True] * 6


# ------------------------------------------------------------------------------------------------ end of a process


def test_a_process_ends_with_idle_workers_and_with_a_launch_under_way() -> None:
    assert script("print(works())") == "True\n"
    script("""
        def again():
            while True: works()
        assert works()
        for _ in range(3): threading.Thread(target=again, daemon=True).start()
        time.sleep(0.3)
    """)


def test_idle_workers_take_no_time() -> None:
    shown = script("""
        assert is_shared()
        before = time.process_time()
        time.sleep(1)
        print(time.process_time() - before)
    """)
    assert float(shown) < 0.1


# ------------------------------------------------------------------------------------------------ little of everything


def test_one_core_and_fewer_cores_than_there_are() -> None:
    script("""
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        assert SimDevice().threads == 1
        assert works(1) and works(4)
        assert is_shared()  # on one core too
    """)


def test_too_little_memory_or_no_thread_for_a_worker() -> None:
    script("""
        import resource
        launch = counting(1)
        launch.run()
        launch.device.threads = 4  # of whom only the calling thread has its memory yet
        used = 1024 * int(next(x for x in open("/proc/self/status") if x.startswith("VmSize")).split()[1])
        for spare in (1 << 16, 1 << 20, 1 << 24, 1 << 28):
            resource.setrlimit(resource.RLIMIT_AS, (used + spare, -1))
            assert is_right(launch)
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        assert is_shared()
    """)


def test_the_command_names_a_wrong_number_of_threads(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "arcweld", "run", str(mlp(tmp_path / "mlp.onnx")), "--device=sim"]
    environment = {**os.environ, "ARCWELD_SIM_THREADS": "x"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 4
    assert "ARCWELD_SIM_THREADS is 'x'" in done.stderr
    assert "hint: unset ARCWELD_SIM_THREADS" in done.stderr
