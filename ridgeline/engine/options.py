"""What a user may say about an engine. Everything is optional; `resolve` settles the rest."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from ridgeline.engine.errors import ConfigError

Backend = Literal["auto", "native", "reference"]
WeightPrecision = Literal["auto", "stored", "bf16", "int8", "int4", "float32"]
KvDtype = Literal["auto", "bf16", "int8", "float32"]
PolicyName = Literal["fcfs", "priority"]

CHOICES: dict[str, tuple[str, ...]] = {
    "backend": ("auto", "native", "reference"),
    "weights": ("auto", "stored", "bf16", "int8", "int4", "float32"),
    "kv_dtype": ("auto", "bf16", "int8", "float32"),
    "policy": ("fcfs", "priority"),
}
RANGES: dict[str, tuple[int, int]] = {
    "max_model_len": (2, 1 << 24),
    "block_size": (1, 1_024),
    "kv_memory_bytes": (1, 1 << 50),
    "num_blocks": (1, 1 << 31),
    "max_num_seqs": (1, 8_192),
    "max_num_batched_tokens": (1, 1 << 20),
    "num_threads": (1, 1_024),
    "max_queue": (1, 1 << 20),
    "seed": (-(1 << 63), (1 << 63) - 1),
}


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of one engine. None and "auto" mean: decide for me, and tell me why.

    Attributes:
        model: None for the default model, a known name, a path, a folder or a hub id.
        backend: who computes: compiled kernels or the numpy reference.
        weights: precision in which matrices are held; "stored" is each in the least that holds the file's.
        kv_dtype: precision of keys and values in the cache.
        max_model_len: longest prompt plus output of a request, in tokens.
        block_size: tokens in a block of the KV cache.
        kv_memory_bytes: memory for the KV cache; excludes num_blocks.
        num_blocks: blocks of the KV cache; excludes kv_memory_bytes.
        max_num_seqs: most requests that run at once.
        max_num_batched_tokens: most tokens computed in one step.
        num_threads: threads of the kernels.
        enable_prefix_caching: share computed blocks among requests with equal prefixes.
        policy: order of admission and of preemption.
        max_queue: most requests that may wait; further ones are refused.
        seed: where the seeds of requests come from that bring none.
        served_model_name: the name in the API; None is the model's own.
        offline: never download.
        overlap: plan step n+1 while step n runs.
    """

    model: str | None = None
    backend: Backend = "auto"
    weights: WeightPrecision = "auto"
    kv_dtype: KvDtype = "auto"
    max_model_len: int | None = None
    block_size: int | None = None
    kv_memory_bytes: int | None = None
    num_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    num_threads: int | None = None
    enable_prefix_caching: bool | None = None
    policy: PolicyName = "fcfs"
    max_queue: int | None = None
    seed: int | None = None
    served_model_name: str | None = None
    offline: bool = False
    overlap: bool | None = None

    def __post_init__(self) -> None:
        """Check types and ranges. Raises ConfigError naming the option and its limits."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(name, f"must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, (low, high) in RANGES.items():
            _check_integer(name, getattr(self, name), low, high)
        for name in ("enable_prefix_caching", "offline", "overlap"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, bool):
                raise ConfigError(name, f"must be true or false, got {value!r}")
        for name in ("model", "served_model_name"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ConfigError(name, f"must be text, got {type(value).__name__}")
        if self.served_model_name is not None and not self.served_model_name.strip():
            raise ConfigError("served_model_name", "must not be empty")

    @classmethod
    def from_mapping(cls, values: dict[str, Any]) -> EngineOptions:
        """Options by name. Raises ConfigError for a name that is no option."""
        known = [entry.name for entry in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(name, f"is no option; options are {', '.join(known)}")
        return cls(**values)


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(name, f"must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ConfigError(name, f"must be between {low} and {high}, got {value}")
