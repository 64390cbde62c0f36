"""What a scheduler is told once, and the two ways in which it says no."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """A set of layers that share one block table per sequence.

    `window` is None when a query sees every earlier position, else the number of positions that it sees:
    blocks further back are let go, and their places in the table hold `NO_BLOCK`.
    """

    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of one scheduler.

    Attributes:
        block_size: positions per block.
        num_blocks: blocks in the pool, shared by all cache groups.
        max_num_seqs: largest number of requests running at once.
        max_num_batched_tokens: largest number of tokens computed in one step.
        max_model_len: context limit: prompt and generated tokens together.
        enable_prefix_caching: keep full blocks by their hash and reuse them.
    """

    block_size: int
    num_blocks: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192
    enable_prefix_caching: bool = True

    def __post_init__(self) -> None:
        for name in ("block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_model_len < 2:
            raise ValueError(f"max_model_len must be at least 2, got {self.max_model_len}")


class RequestRejected(ValueError):
    """A request that can never run. `param` names the field at fault, `reason` says the limit."""

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(f"{param}: {reason}")
        self.param = param
        self.reason = reason


class IllegalMove(RuntimeError):
    """A call that the state machine does not allow; always a bug of the caller or of the scheduler."""
