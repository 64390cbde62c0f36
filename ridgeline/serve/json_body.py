"""Read a request body as JSON, strictly: bounded size, depth and count before anything is built.

Python's json module would take duplicate keys, NaN, half a surrogate pair and 1e999; it would also turn
8 MB of brackets into hundreds of megabytes of objects. All of these are refused here, with a 400.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

from starlette.requests import ClientDisconnect, Request

from ridgeline.serve.errors import ApiError, bad_request
from ridgeline.serve.options import ServerOptions

MAX_CONTAINERS = 100_000
INLINE_BYTES = 32 * 1024
"""Larger bodies are parsed off the event loop."""

_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
"""Possessive, and an unfinished string ends with the body: one pass, never quadratic."""
_PAIRS = re.compile(rb"\[\]|\{\}")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_MAYBE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_json(request: Request, options: ServerOptions) -> dict[str, Any]:
    """The body of a request: a JSON object. Raises ApiError 400, 413 or 415."""
    if request.url.query:
        raise bad_request(
            "query", "parameters belong into the body, not behind the path", "unknown_parameter"
        )
    _check_content_type(request)
    raw = await _read(request, options.max_body_bytes)
    if len(raw) <= INLINE_BYTES:
        body = parse_json(raw, options.max_json_depth)
    else:
        body = await asyncio.to_thread(parse_json, raw, options.max_json_depth)
    if not isinstance(body, dict):
        raise bad_request(None, "the body must be a JSON object")
    return body


def parse_json(raw: bytes, max_depth: int) -> object:
    """Strict JSON. Raises ApiError 400 saying what is wrong and where."""
    if not raw:
        raise bad_request(None, "the body is empty; a JSON object is needed", "invalid_json")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad_request(
            None, f"the body is not valid UTF-8 (byte {error.start})", "invalid_json"
        ) from error
    _check_nesting(raw, max_depth)
    try:
        body = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except json.JSONDecodeError as error:
        raise bad_request(None, f"the body is not valid JSON: {error}", "invalid_json") from error
    except RecursionError as error:
        raise bad_request(None, "the body is nested too deeply", "invalid_json") from error
    if _MAYBE_SURROGATE.search(raw):
        _check_surrogates(body)
    return body


def _check_content_type(request: Request) -> None:
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise ApiError(415, "Content-Type must be application/json in UTF-8", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Content-Encoding is not supported", code="unsupported_media_type")


async def _read(request: Request, limit_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and (len(declared) > 18 or int(declared) > limit_bytes):
        raise too_large(limit_bytes)
    chunks = bytearray()
    try:
        async for chunk in request.stream():
            chunks += chunk
            if len(chunks) > limit_bytes:
                raise too_large(limit_bytes)
    except ClientDisconnect as error:
        raise ApiError(408, "the client left before the body was complete", code="incomplete_body") from error
    return bytes(chunks)


def too_large(limit_bytes: int) -> ApiError:
    """413; what still arrives of the body is discarded until the body deadline."""
    message = f"the body is larger than the limit of {limit_bytes} bytes"
    return ApiError(413, message, code="body_too_large")


def _check_nesting(raw: bytes, max_depth: int) -> None:
    """Peel the innermost pairs off, one level a pass: what is left after max_depth passes is too deep."""
    if raw.count(b"[") + raw.count(b"{") <= max_depth:
        return
    brackets = _STRINGS.sub(b"", raw).translate(None, _NOT_BRACKETS)
    if brackets.count(b"[") + brackets.count(b"{") > MAX_CONTAINERS:
        raise bad_request(
            None, f"the body holds more than {MAX_CONTAINERS} arrays and objects", "invalid_json"
        )
    for _ in range(max_depth):
        peeled = _PAIRS.sub(b"", brackets)
        if len(peeled) == len(brackets):
            break
        brackets = peeled
    if brackets:
        raise bad_request(
            None, f"the body is nested deeper than {max_depth} or its brackets do not match", "invalid_json"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise bad_request(printable(key), "appears twice in one object", "duplicate_key")
            seen.add(key)
    return result


def _no_constant(name: str) -> object:
    raise bad_request(None, f"{name} is not JSON", "invalid_json")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise bad_request(None, "a number in the body is too large for a float", "invalid_json")
    return value


def _integer(text: str) -> int:
    if len(text) > 40:
        raise bad_request(None, "an integer in the body has more than 40 digits", "invalid_json")
    return int(text)


def _check_surrogates(body: object) -> None:
    try:
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad_request(None, "a string in the body holds half a surrogate pair", "invalid_json") from error


def printable(text: str, limit: int = 64) -> str:
    """A client's own word made fit to be quoted back: short, and without control characters or half pairs."""
    clean = text.encode("ascii", "backslashreplace").decode()
    clean = "".join(c if c.isprintable() else "?" for c in clean)
    return clean if len(clean) <= limit else clean[:limit] + "..."
