"""What this machine lets this process use: cores, memory, instruction sets. Linux best, elsewhere less.

Limits of a container (cgroup v1 and v2, every level up to the root) count as the machine's own.
"""

from __future__ import annotations

import importlib
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from ridgeline.facts.hardware import HardwareSpec

NATIVE_MODULE = "ridgeline.runtime.native._native"
_UNLIMITED = 1 << 60
_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16",
    "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NativeProbe:
    """Whether the compiled kernels can be imported, and the reason in words.

    `tiers`: the instruction set tiers that were compiled and that run here, weakest first; () unknown.
    """

    available: bool
    reason: str
    tiers: tuple[str, ...] = ()


def probe_native() -> NativeProbe:
    """Import the kernel module once."""
    try:
        module = importlib.import_module(NATIVE_MODULE)
    except ImportError as error:
        return NativeProbe(False, f"the compiled kernels are not here ({error})")
    return NativeProbe(True, "the compiled kernels import", tuple(module.available_tiers()))


def probe_hardware(root: Path = Path("/")) -> HardwareSpec:
    """The machine as this process may use it. `root` stands for / in tests."""
    groups = _cgroups(root)
    name, flags = _cpu(root)
    cores, cores_reason = _cores(groups)
    memory, memory_reason = _memory(root, groups)
    return HardwareSpec(
        name=name,
        num_cores=cores,
        memory_bytes=memory,
        isa=tuple(flag for flag in _FLAGS if flag in flags),
        cores_reason=cores_reason,
        memory_reason=memory_reason,
    )


def _cpu(root: Path) -> tuple[str, set[str]]:
    name, flags = platform.processor() or platform.machine() or "unknown CPU", set[str]()
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
            break
    return name, flags


def _cores(groups: list[Path]) -> tuple[int, str]:
    """Cores by affinity, capped by the tightest cgroup quota (rounded up)."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except AttributeError:
        affinity = os.cpu_count() or 1
    quota = min((_quota(group) for group in groups), default=math.inf)
    if quota < affinity:
        cores = max(1, math.ceil(quota))
        return cores, f"cgroup CPU quota of {quota:g} of {affinity} cores"
    noun = "core" if affinity == 1 else "cores"
    return affinity, f"{affinity} {noun} available to this process (sched affinity; no lower cgroup quota)"


def _quota(group: Path) -> float:
    """CPUs that a cgroup grants, inf when it sets no limit."""
    text = _read(group / "cpu.max").split()
    if not text:
        text = [_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()]
    try:
        quota, period = int(text[0]), int(text[1])
    except (ValueError, IndexError):
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _memory(root: Path, groups: list[Path]) -> tuple[int, str]:
    """Memory still to be had: what is free, or what the tightest cgroup has left."""
    free, reason = _free_memory(root)
    for group in groups:
        left = _memory_left(group)
        if left < free:
            free, reason = left, "what the cgroup memory limit leaves"
    return max(free, 0), reason


def _free_memory(root: Path) -> tuple[int, str]:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024, "MemAvailable of /proc/meminfo"
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2, "half of the physical memory"
    except (ValueError, OSError, AttributeError):
        return 4 << 30, "4 GiB assumed: this system does not say"


def _memory_left(group: Path) -> int:
    """Limit minus use, where reclaimable file pages do not count as use."""
    limit = _number(group / "memory.max", _number(group / "memory.limit_in_bytes", _UNLIMITED))
    if limit >= _UNLIMITED:
        return _UNLIMITED
    used = _number(group / "memory.current", _number(group / "memory.usage_in_bytes", 0))
    for line in _read(group / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "active_file") and value.isdigit():
            used -= int(value)
    return limit - max(used, 0)


def _cgroups(root: Path) -> list[Path]:
    """Folders of this process's control groups, from its own up to the root of each hierarchy."""
    base = root / "sys/fs/cgroup"
    folders = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3:
            continue
        tops = [base] if parts[1] == "" else [base / controller for controller in ("memory", "cpu", parts[1])]
        path = Path(parts[2].lstrip("/"))
        for top in tops:
            folders += [top / level for level in (path, *path.parents)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _number(path: Path, default: int) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else default


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
