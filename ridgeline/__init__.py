"""Ridgeline: plan, serve, bench, diagnose and explain LLM deployments.

Importing this package loads nothing heavy: the public names below are resolved on first use
(PEP 562), so that `import ridgeline` stays under 50 ms (contract 7).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ridgeline.engine.async_engine import AsyncEngine
    from ridgeline.engine.llm import LLM
    from ridgeline.engine.outputs import Completion, RequestOutput
    from ridgeline.engine.sampling_params import SamplingParams

__version__ = "0.1.0"

_HOMES = {
    "LLM": "ridgeline.engine.llm",
    "AsyncEngine": "ridgeline.engine.async_engine",
    "SamplingParams": "ridgeline.engine.sampling_params",
    "RequestOutput": "ridgeline.engine.outputs",
    "Completion": "ridgeline.engine.outputs",
}

__all__ = ["LLM", "AsyncEngine", "Completion", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ridgeline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
