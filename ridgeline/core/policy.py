"""Who goes first and who has to yield: pure functions of what a request is, never of the clock.

A policy ranks requests once, at arrival. The waiting are admitted, and the running served, by ascending rank;
a preempted request keeps its rank, which puts it ahead of its equals.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import NamedTuple, Protocol

from ridgeline.core.request import Request

Rank = tuple[int, ...]


class Standing(Protocol):
    """What a policy may see of a request."""

    @property
    def request(self) -> Request: ...

    @property
    def arrival(self) -> int: ...

    @property
    def rank(self) -> Rank: ...


class Policy(NamedTuple):
    """Three pure functions.

    Attributes:
        name: as options spell it.
        rank: rank of a request given its order of arrival; smaller goes first, and no two are equal.
        victim: which of the running (by ascending rank, at least one) gives up its blocks.
        yields: whether a running request is preempted because one that waits outranks it.
    """

    name: str
    rank: Callable[[Request, int], Rank]
    victim: Callable[[Several[Standing]], Standing]
    yields: Callable[[Standing, Standing], bool]


def _last(running: Several[Standing]) -> Standing:
    return running[-1]


def _by_arrival(request: Request, arrival: int) -> Rank:
    return (arrival,)


def _by_priority(request: Request, arrival: int) -> Rank:
    return (request.priority, arrival)


def _never(running: Standing, waiting: Standing) -> bool:
    return False


def _to_more_urgent(running: Standing, waiting: Standing) -> bool:
    return running.request.priority > waiting.request.priority


FCFS = Policy("fcfs", _by_arrival, _last, _never)
"""First come, first served; the last to come yields."""

PRIORITY = Policy("priority", _by_priority, _last, _to_more_urgent)
"""Smaller `priority` first, then first come; the least urgent yields, also to one who waits."""

POLICIES = {policy.name: policy for policy in (FCFS, PRIORITY)}
