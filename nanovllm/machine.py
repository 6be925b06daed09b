"""What this process may use of the machine: CPUs and memory, cgroup limits included.

Leaf module; reads /proc and /sys, changes nothing. `root` arguments exist for tests with a made-up file system.
"""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _integers(text: str | None, separator: str | None = None) -> dict[str, int]:
    """Lines "name number" as a dict; anything else is passed over."""
    found = {}
    for line in (text or "").splitlines():
        parts = line.split(separator)
        if len(parts) >= 2 and parts[1].split()[0:1] and parts[1].split()[0].isdigit():
            found[parts[0].strip()] = int(parts[1].split()[0])
    return found


def _number(text: str | None) -> int | None:
    """An integer file of a cgroup; "max" and unreadable files are no limit."""
    text = (text or "").strip()
    return int(text) if text.isdigit() else None


def _cgroup_dirs(root: Path, controller: str) -> list[tuple[str, Path]]:
    """(version, folder) of this process's cgroup and all its parents, for one controller."""
    found = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            version, base = "v2", root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            version, base = "v1", root / "sys/fs/cgroup" / controller
        else:
            continue
        parts = [p for p in path.split("/") if p not in ("", "..")]
        # In a container the path may name folders that only the host sees; those are simply absent here.
        found += [(version, base.joinpath(*parts[:depth])) for depth in range(len(parts), -1, -1)]
    return found


def _cgroup_free(version: str, folder: Path) -> int | None:
    """Bytes that a cgroup may still take: its limit minus what cannot be reclaimed. None without a limit."""
    limit = _number(_read(folder / ("memory.max" if version == "v2" else "memory.limit_in_bytes")))
    if limit is None or limit >= 1 << 60:  # v1 writes "no limit" as a number near 2**63
        return None
    stat = _integers(_read(folder / "memory.stat"))
    if version == "v2":
        # Mapped weights are page cache: the kernel drops them under pressure, so only the rest counts as used.
        used = stat.get("anon", 0) + stat.get("shmem", 0) + stat.get("slab_unreclaimable", 0)
    else:
        used = stat.get("total_rss", stat.get("rss", 0)) + stat.get("total_shmem", stat.get("shmem", 0))
    return max(0, limit - used)


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take without swapping or being killed."""
    free = _integers(_read(root / "proc/meminfo"), ":").get("MemAvailable", 1 << 20) * 1024
    limits = [_cgroup_free(*place) for place in _cgroup_dirs(root, "memory")]
    return min([free, *(limit for limit in limits if limit is not None)])


def _cpu_quota(version: str, folder: Path) -> float | None:
    if version == "v2":
        parts = (_read(folder / "cpu.max") or "").split()
        if len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit() and int(parts[1]) > 0:
            return int(parts[0]) / int(parts[1])
        return None
    quota, period = _number(_read(folder / "cpu.cfs_quota_us")), _number(_read(folder / "cpu.cfs_period_us"))
    return quota / period if quota and period else None


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs by affinity, lowered to the cgroup quota (rounded up, at least 1)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_cpu_quota(*place) for place in _cgroup_dirs(root, "cpu")]
    return max(1, min([cpus, *(math.ceil(q) for q in quotas if q)]))


@dataclass(frozen=True)
class Cpu:
    """Name and features of the CPU, for reports."""

    model: str
    architecture: str
    flags: tuple[str, ...]


# The features that decide which kernels can run; the full list of /proc/cpuinfo is a page long.
_INTERESTING = (
    *("sse2", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def cpu(root: Path = Path("/")) -> Cpu:
    """Read the CPU's name and the features that matter here."""
    fields: dict[str, str] = {}
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Cpu(fields.get("model name", "unknown"), platform.machine(), tuple(f for f in _INTERESTING if f in flags))


def format_bytes(size: float) -> str:
    """Write a size for people: 1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
