"""The CPUs that a process may use: affinity, and quotas of control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arcweld.compiler.cpus import available_cpus


def container(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "12:cpu,cpuacct:/docker/1234\n9:name=systemd:/docker/1234\n"
QUOTAS: list[tuple[dict[str, str], int | None]] = [
    ({}, None),
    ({"proc/self/cgroup": "0::/\n"}, None),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
    ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
      "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 3),
    ({"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/docker/1234/cpu.cfs_quota_us": "50000\n",
      "sys/fs/cgroup/cpu/docker/1234/cpu.cfs_period_us": "100000\n"}, 1),
    ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
      "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, None),
    ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
      "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2),
    ({"proc/self/cgroup": "0::/\nrubbish\n:\n", "sys/fs/cgroup/cpu.max": "1 0\n"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("files", "quota"), QUOTAS)
def test_the_quota_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert available_cpus(container(tmp_path, files)) == (quota or 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1))
    assert available_cpus(tmp_path) == 1
