"""Health, readiness, version, metrics, and the resolved configuration."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ridgeline import __version__
from ridgeline.serve.errors import json_response
from ridgeline.serve.metrics import CONTENT_TYPE
from ridgeline.serve.service import Service


async def health(service: Service, http: Request) -> Response:
    """Live: 200 while the process can answer and the engine has not died; load and drain do not matter."""
    if service.state() == "failed":
        return json_response({"status": "failed"}, 503)
    return json_response({"status": "ok"})


async def ready(service: Service, http: Request) -> Response:
    """200 only while requests are taken."""
    state = service.state()
    if state == "ready":
        return json_response({"status": state})
    return json_response({"status": state}, 503, {"Retry-After": "1"})


async def version(service: Service, http: Request) -> Response:
    """Of this software."""
    return json_response({"version": __version__})


async def metrics(service: Service, http: Request) -> Response:
    """Prometheus text, made off the event loop."""
    text = await asyncio.to_thread(service.metrics.text)
    return Response(text, headers={"Content-Type": CONTENT_TYPE})


async def engine_config(service: Service, http: Request) -> Response:
    """What the engine runs with, and why."""
    engine = service.live_engine()
    prepared = engine.parts.prepared
    decisions = prepared.decisions if prepared is not None else ()
    return json_response(
        {
            "model": engine.model_name,
            "config": plain(engine.config),
            "decisions": [plain(decision) for decision in decisions],
            "stats": plain(engine.stats()),
            "stage_seconds": engine.stage_seconds(),
        }
    )


def plain(value: Any) -> Any:
    """Dataclasses, paths and enums as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Path):
        return value.name
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
