"""NVTX ranges around launches, named after the kernel and the model's nodes, for Nsight Systems and other profilers.

They are made only if ``ARCWELD_NVTX`` is 1 when an engine is loaded; otherwise nothing of this runs in a call.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from arcweld.compiler.errors import EnvironmentError_, UsageError
from arcweld.compiler.logs import printable
from arcweld.runtime.device import Device
from arcweld.runtime.launch_list import Issue, Step, issue
from arcweld.runtime.plan import ExecutionPlan

VARIABLE = "ARCWELD_NVTX"
MOST = 256  # characters of a name


def asked() -> bool:
    """Whether ranges are asked for. Raises UsageError for a value that is neither 0 nor 1."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise UsageError(f"{VARIABLE} is {value!r}", hint="set it to 1 for NVTX ranges, to 0 or nothing for none")
    return value == "1"


def in_ranges(name: str, plans: Iterable[ExecutionPlan]) -> Issue:
    """``issue`` with a range for the whole list, called ``name``, and one for each launch of ``plans`` in it.

    Raises EnvironmentError_ where NVTX is missing.
    """
    nvtx = _library()
    names = {
        x.launch.name: _short(f"{x.variant.entry}: {', '.join(x.launch.origin)}") for p in plans for x in p.launches
    }
    whole = _short(name or "engine")

    def marked(steps: Sequence[Step], addresses: Sequence[int], device: Device, stream: int) -> None:
        nvtx.RangePush(whole)
        try:
            for step in steps:
                nvtx.RangePush(names[step.spec.name])
                try:
                    issue((step,), addresses, device, stream)
                finally:
                    nvtx.RangePop()
        finally:
            nvtx.RangePop()

    return marked


def _library() -> Any:
    try:
        from cupy.cuda import nvtx
    except ImportError as error:
        raise EnvironmentError_(
            f"{VARIABLE} is 1, and CuPy's NVTX cannot be imported: {error}",
            hint=f"pip install cupy-cuda12x, or unset {VARIABLE}",
        ) from error
    return nvtx


def _short(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= MOST else f"{shown[: MOST - 3]}..."
