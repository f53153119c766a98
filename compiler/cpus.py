"""How many CPUs this process may use, which in a container are fewer than it sees."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def available_cpus(root: Path = _ROOT) -> int:
    """The CPUs of the process's affinity mask, or those that its control groups' CPU time makes, if they are fewer.

    A quota of one and a half CPUs counts as two. Control groups of both versions, and those above them, are read below
    ``root`` (cgroups(7); the kernel's cgroup-v2 and sched-bwc documents); what is not there sets no limit.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root)
    return seen if quota is None else max(1, min(seen, quota))


@cache
def _quota(root: Path) -> int | None:
    """The CPUs of the smallest quota, rounded up; None without a quota."""
    quotas = []
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            mounts, read = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = ("sys/fs/cgroup/cpu", f"sys/fs/cgroup/{controllers}"), _quota_v1
        else:
            continue
        group = PurePosixPath(*(part for part in path.split("/") if part not in ("", "..")))
        # In a container the mount point may be the group itself: the path outside is then not found below it.
        quotas += [read(root / mount / folder) for mount in mounts for folder in (group, *group.parents)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(group: Path) -> int | None:
    """Of ``cpu.max``: the quota, or ``max``, and the period in microseconds."""
    fields = (_text(group / "cpu.max") or "").split()
    return _whole(*fields) if len(fields) == 2 else None


def _quota_v1(group: Path) -> int | None:
    """Of two files, in microseconds; a quota of -1 is none."""
    return _whole(_text(group / "cpu.cfs_quota_us") or "", _text(group / "cpu.cfs_period_us") or "")


def _whole(quota: str, period: str) -> int | None:
    if not quota.strip().isdigit() or not period.strip().isdigit() or int(period) == 0:
        return None
    return -(-int(quota) // int(period))


def _text(path: Path) -> str | None:
    """The file's text, or None where there is no such file or this user may not read it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
