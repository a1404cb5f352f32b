"""Threads within affinity and container quota."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from onevision.native import device
from onevision.native.device import cpu_quota, default_threads

if TYPE_CHECKING:
    from pathlib import Path


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "400000 100000\n"}, 4),
        (  # the least of all ancestors
            "0::/a/b\n",
            {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n"},
            2,
        ),
        # the host's path, of which the container sees only the end
        ("0::/docker/0123\n", {"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        (  # version 1
            "4:memory:/x\n3:cpu,cpuacct:/x\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (  # version 1, no limit
            "3:cpu:/\n",
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "damaged"}, None),
        ("rubbish", {}, None),
    ],
)
def test_quota(cgroup: str, files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    assert cpu_quota(system(tmp_path, cgroup, files)) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "threads"), [(None, 6), (2.5, 2), (0.5, 1), (64.0, 6)])
def test_threads(quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(device, "cpu_quota", lambda: quota)
    assert default_threads() == threads


def test_this_machine() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
