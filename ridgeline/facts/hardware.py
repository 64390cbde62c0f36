"""What a machine is. Probing it is engine/hardware_probe.py's business; this is only the noun."""

from __future__ import annotations

from dataclasses import dataclass

ISA_TIERS = ("portable", "avx2", "avx512", "amx")
"""Tiers of the native kernels, each needing what the one before it needs and more."""


@dataclass(frozen=True, slots=True)
class HardwareSpec:
    """One machine as this process may use it.

    `num_cores`: cores that the process may run on (affinity and cgroup quota applied).
    `memory_bytes`: memory that it may still take now (free memory and cgroup limit applied).
    `isa`: instruction sets that matter here, by the Linux names (avx2, avx512f, avx512_vnni, amx_int8, ...).
    `cores_reason`, `memory_reason`: where the two numbers come from, in words.
    """

    name: str
    num_cores: int
    memory_bytes: int
    isa: tuple[str, ...] = ()
    memory_bandwidth_bytes_per_s: float | None = None
    cores_reason: str = ""
    memory_reason: str = ""

    @property
    def isa_tier(self) -> str:
        """The highest kernel tier whose instructions are all there."""
        flags = set(self.isa)
        if not {"avx2", "fma", "f16c"} <= flags:
            return "portable"
        if not {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"} <= flags:
            return "avx2"
        if not {"amx_tile", "amx_int8", "amx_bf16"} <= flags:
            return "avx512"
        return "amx"
