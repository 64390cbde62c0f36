from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.serve.serving import Live, serving


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """A real server on a real port, over a simulated executor. Every module leaves it as it was."""
    with serving() as live:
        canary = live.canary()
        yield live
        live.wait_idle()
        assert live.canary() == canary
        assert live.num_held_blocks() == 0


@pytest.fixture
def http(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=20) as client:
        yield client
