"""GET /: one self-contained page. Its script and style are inline and named by hash in a strict CSP."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from ridgeline.serve.service import Service


async def page(service: Service, http: Request) -> Response:
    """The page; it talks to the same API as any client."""
    html, policy = _assembled()
    return Response(
        html,
        media_type="text/html",
        headers={
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            "Cache-Control": "no-cache",
        },
    )


@cache
def _assembled() -> tuple[str, str]:
    """(html, content security policy) from web/page.{html,css,js}."""
    folder = resources.files("ridgeline.serve").joinpath("web")
    html, style, script = (
        folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js")
    )
    html = html.replace("/* style */", style).replace("/* script */", script)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
