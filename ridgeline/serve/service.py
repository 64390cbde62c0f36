"""What the routes share: the engine once it is loaded, the limits, the metrics, whether we are leaving."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ridgeline.serve.errors import ApiError, unavailable
from ridgeline.serve.metrics import Metrics
from ridgeline.serve.options import ServerOptions

if TYPE_CHECKING:
    from ridgeline.engine.async_engine import AsyncEngine


class Service:
    """States: loading (no engine) -> ready -> draining. Only `ready` takes requests."""

    def __init__(self, options: ServerOptions, metrics: Metrics) -> None:
        self.options = options
        self.metrics = metrics
        self.engine: AsyncEngine | None = None
        self.draining = False
        self.created = int(time.time())
        self.loading = "starting"

    def attach(self, engine: AsyncEngine) -> None:
        """The engine is loaded (not necessarily started): from now on its events are counted."""
        self.engine = engine
        self.metrics.attach(engine, self.model_names()[0])

    def model_names(self) -> tuple[str, ...]:
        """Names accepted in `model`, the reported one first; empty while loading."""
        if self.options.served_model_names:
            return self.options.served_model_names
        return (self.engine.model_name,) if self.engine else ()

    def state(self) -> str:
        """`loading`, `ready`, `draining` or `failed`."""
        if self.draining:
            return "draining"
        if self.engine is None:
            return "loading"
        if not self.engine.is_healthy:
            return "failed"
        return "ready" if self.engine.is_ready else "loading"

    def live_engine(self) -> AsyncEngine:
        """Raises ApiError 503 with Retry-After unless requests are taken."""
        state = self.state()
        if state == "ready" and self.engine is not None:
            return self.engine
        messages = {
            "draining": "the server is shutting down",
            "loading": f"the model is still loading ({self.loading})",
            "failed": "the engine has failed",
        }
        raise unavailable(messages.get(state, "the engine is not ready"), f"server_{state}")

    def check_model(self, name: str | None) -> str:
        """The name to report. Raises ApiError 404 for a model that is not served."""
        names = self.model_names()
        if name is None:
            return names[0]
        if name not in names:
            known = ", ".join(names)
            raise ApiError(404, f"model: this server has {known}", param="model", code="model_not_found")
        return name
