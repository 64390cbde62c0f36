"""Errors as OpenAI shapes them: `{"error": {"message", "type", "param", "code"}}`, naming field and limit.

Only messages written here or in `engine.errors` reach a client; whatever else goes wrong is logged and
answered with a sentence that says nothing of the inside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from starlette.responses import Response

from ridgeline.engine.errors import ContextLengthExceeded, EngineClosed, EngineOverloaded, InvalidParameter

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_RENAMED = {"include_stop": "include_stop_str_in_output"}


class ApiError(Exception):
    """Answered to the client as it stands. `param` names the field at fault, None where there is none."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, object]:
        """The OpenAI error object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer, headers included."""
        return json_response(self.body, self.status, self.headers)


def bad_request(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A 400 whose message starts with the field's name."""
    text = f"{param}: {message}" if param else message
    return ApiError(400, text, param=param, code=code)


def unsupported(param: str, message: str | None = None) -> ApiError:
    """A 400 for what is known but not here: refused, never ignored."""
    return bad_request(param, message or "is not supported by this server", "unsupported_parameter")


def unavailable(message: str, code: str, retry_after_s: float = 5) -> ApiError:
    """A 503 that says when to come back."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(max(1, math.ceil(retry_after_s)))})


def from_engine(error: Exception) -> ApiError:
    """What the engine raised, as a client sees it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthExceeded):
        return bad_request(error.param, error.reason, "context_length_exceeded")
    if isinstance(error, EngineOverloaded):
        wait_s = str(max(1, math.ceil(error.retry_after_s)))
        return ApiError(429, str(error), code="engine_overloaded", headers={"Retry-After": wait_s})
    if isinstance(error, EngineClosed):
        return unavailable("the engine is not taking requests", "engine_closed")
    param = getattr(error, "param", None)
    if isinstance(param, str) and isinstance(error, (InvalidParameter, ValueError)):
        return bad_request(_RENAMED.get(param, param), str(getattr(error, "reason", error)), "invalid_value")
    return ApiError(500, "the server failed to process the request", code="internal_error")


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """The same error about a field that this request calls otherwise; `names`: engine's -> request's."""
    name = names.get(error.param or "")
    if name is None:
        return error
    message = error.message.removeprefix(f"{error.param}: ")
    return ApiError(error.status, f"{name}: {message}", param=name, code=error.code, headers=error.headers)


def json_response(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Compact UTF-8 JSON; not-a-number never gets out."""
    raw = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(raw, status_code=status, headers=headers, media_type="application/json")
