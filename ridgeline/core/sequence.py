"""A request under way: its tokens, its counters, its blocks, and the moves that its status allows."""

from __future__ import annotations

from enum import Enum

from ridgeline.core.config import IllegalMove
from ridgeline.core.request import Request


class Status(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class Move(Enum):
    """What can happen to it."""

    ADMIT = "admit"
    PREEMPT = "preempt"
    FINISH = "finish"


TRANSITIONS: dict[tuple[Status, Move], Status] = {
    (Status.WAITING, Move.ADMIT): Status.RUNNING,
    (Status.WAITING, Move.FINISH): Status.FINISHED,
    (Status.RUNNING, Move.PREEMPT): Status.PREEMPTED,
    (Status.RUNNING, Move.FINISH): Status.FINISHED,
    (Status.PREEMPTED, Move.ADMIT): Status.RUNNING,
    (Status.PREEMPTED, Move.FINISH): Status.FINISHED,
}
"""Every legal move. PREEMPTED differs from WAITING only in that it has run before."""


class Sequence:
    """Mutable state of one request; only the scheduler and its paging write to it.

        tokens    |prompt ........|generated ....|      values, all that are known
        known     |-------------------------------->|   positions with a token, samples in flight included
        computed  |------------------------------>|     positions that some plan has computed
        settled   |--------------------------->|        positions whose plan has been applied

    There are no phases: a row takes `computed` towards `known`. `settled < computed` means in flight.
    """

    __slots__ = (
        "arrival", "blocks", "computed", "id", "known", "max_len", "min_len", "names", "num_cached",
        "num_preemptions", "num_prompt", "publish_at", "rank", "request", "room", "root", "settled", "slid",
        "status", "stops", "tables", "tokens",
    )  # fmt: skip

    def __init__(self, request: Request, arrival: int, max_len: int, root: bytes, num_groups: int) -> None:
        self.request = request
        self.id = request.id
        self.arrival = arrival
        """Order of arrival; ties cannot happen."""
        self.rank: tuple[int, ...] = (arrival,)
        self.status = Status.WAITING
        self.tokens = list(request.prompt)
        self.num_prompt = len(request.prompt)
        self.max_len = max_len
        """Finishes with `length` at this many tokens, prompt included."""
        self.min_len = self.num_prompt + request.min_tokens
        self.stops = request.stop_token_ids
        self.known = self.num_prompt
        self.computed = 0
        self.settled = 0
        self.root = root
        self.names: list[bytes] = []
        self.num_cached = 0
        self.num_preemptions = 0
        self.clear_blocks(num_groups)

    def clear_blocks(self, num_groups: int) -> None:
        """Hold nothing (the caller has given the blocks back)."""
        self.tables: list[list[int]] = [[] for _ in range(num_groups)]
        self.blocks: tuple[tuple[int, ...], ...] = tuple(() for _ in range(num_groups))
        self.slid = [0] * num_groups
        """Per group, blocks at the front of the table that a window has let go."""
        self.room = 0
        """Positions that the tables cover."""
        self.publish_at = 0
        """Once `settled` reaches this, there is a full block to publish."""

    @property
    def in_flight(self) -> bool:
        """Whether a plan that has a row of it is not yet applied."""
        return self.settled != self.computed

    @property
    def num_generated(self) -> int:
        """Tokens generated so far whose values are known."""
        return len(self.tokens) - self.num_prompt

    def move(self, move: Move) -> None:
        """Change status by the table.

        Raises:
            IllegalMove: the table has no such move.
        """
        try:
            self.status = TRANSITIONS[self.status, move]
        except KeyError:
            raise IllegalMove(f"request {self.id!r} is {self.status.value}: cannot {move.value}") from None
