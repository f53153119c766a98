"""The machine that figures are measured on, in words."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

from arcweld.runtime.devices import gpu_count


def machine() -> str:
    """Processor, memory, GPUs, Python and date: ``2 CPUs (model), 24 GB, no GPU; Python 3.11, 2026-01-31``."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = {line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = f"{gpu_count()} GPUs" if gpu_count() else "no GPU"
    python = ".".join(platform.python_version_tuple()[:2])
    cpus = f"{os.cpu_count()} CPUs ({', '.join(sorted(models))})"
    return f"{cpus}, {memory:.0f} GB, {gpus}; Python {python}, {datetime.date.today().isoformat()}"


def on_this_machine() -> str:
    """The last line of a block whose figures depend on the machine."""
    return f"Measured on {machine()}."
