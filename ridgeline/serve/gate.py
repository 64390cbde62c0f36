"""The outermost layer: request ids, keys, errors, counts. Nothing behind it is reached without a key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import time
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ridgeline.serve.errors import ApiError, bad_request, from_engine
from ridgeline.serve.service import Service

logger = logging.getLogger("ridgeline.serve")

ROUTE = "ridgeline.route"
"""Where a route leaves its pattern in the request's state."""
CLIENT_GONE = 499
"""Counted where the client left before an answer began (nginx's number)."""
OPEN_PATHS = frozenset({"/health"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Keys:
    """API keys, kept as digests. Checking takes the same time whichever key is right, or none."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, authorization: str) -> bool:
        """Whether an Authorization header carries a key: `Bearer KEY`, or `Basic` with it as the password."""
        digest = hashlib.sha256(_credential(authorization)).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found


def _credential(authorization: str) -> bytes:
    scheme, _, rest = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip().encode("utf-8", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


class Gate:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._keys = Keys(service.options.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = time.perf_counter()
        answer = _Answer(send, "req-" + uuid.uuid4().hex)
        scope.setdefault("state", {})
        metrics = self._service.metrics
        metrics.http_active += 1
        try:
            headers = Headers(scope=scope)
            answer.request_id = _request_id(headers, answer.request_id)
            self._authorise(scope, headers)
            await self._app(scope, receive, answer.send)
        except Exception as error:
            await self._explain(error, answer, scope, receive)
        finally:
            metrics.http_active -= 1
            seconds = time.perf_counter() - started_s
            metrics.http_seconds.observe(seconds)
            if scope["state"].get("client_gone"):
                metrics.disconnects += 1
                answer.status = answer.status or CLIENT_GONE
            method, route = _method(scope), _route(scope)
            metrics.http_answers[(method, route, answer.status)] += 1
            logger.info(
                "%s %s %s %d %.1f ms", answer.request_id, method, route, answer.status, 1000 * seconds
            )

    async def _explain(self, error: Exception, answer: _Answer, scope: Scope, receive: Receive) -> None:
        told = from_engine(error)
        if told.status == 500 and told is not error:
            logger.exception("a request failed", exc_info=error)
        if answer.status:
            raise error
        await told.response()(scope, receive, answer.send)

    def _authorise(self, scope: Scope, headers: Headers) -> None:
        if not self._keys or scope["path"] in OPEN_PATHS:
            return
        given = headers.getlist("authorization")
        if len(given) == 1 and self._keys.accept(given[0]):
            return
        # A browser can only be asked for a name and a password: the key is the password.
        challenge = "Basic" if scope["path"] == "/" else "Bearer"
        message = "a valid API key is required: Authorization: Bearer KEY"
        raise ApiError(
            401,
            message,
            code="invalid_api_key",
            headers={"WWW-Authenticate": f'{challenge} realm="ridgeline"'},
        )


class _Answer:
    """Adds headers to the answer's start and remembers its status (0 before)."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode("ascii")),
                (b"x-content-type-options", b"nosniff"),
            ]
        await self._send(message)


def _request_id(headers: Headers, drawn: str) -> str:
    given = headers.get("x-request-id")
    if given is None:
        return drawn
    if not _REQUEST_ID.fullmatch(given):
        raise bad_request("X-Request-Id", "1 to 128 characters out of letters, digits and . _ : / + = @ -")
    return given


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "OTHER"


def _route(scope: Scope) -> str:
    """The route's pattern, so that clients cannot invent label values."""
    return str(scope["state"].get(ROUTE, "unmatched"))
