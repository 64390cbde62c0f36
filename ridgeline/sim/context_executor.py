"""An executor whose KV cache remembers contexts, so that a wrong block shows as such and not as odd text.

Where a model would store keys and values of position p, this one stores a digest of tokens 0..p (and of the
cache group). Before it "attends" it compares everything that the row may see with what belongs there, and the
token that it samples is a function of the digest: equal to `expected_tokens` or something is broken.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b

from ridgeline.core.config import CacheGroup
from ridgeline.core.plan import NO_BLOCK, Row, StepPlan, StepResult
from ridgeline.sim.executors import FaultFn, no_fault
from ridgeline.sim.virtual_clock import VirtualClock


class CorruptContext(AssertionError):
    """A row would have read something else than its own context, or written over somebody's."""


def _digest(before: bytes, token: int) -> bytes:
    return blake2b(before + token.to_bytes(8, "little", signed=True), digest_size=12).digest()


def _token(context: bytes, vocab_size: int) -> int:
    return int.from_bytes(context[:6], "little") % vocab_size


def expected_tokens(prompt: tuple[int, ...], num_tokens: int, vocab_size: int) -> tuple[int, ...]:
    """What a `ContextExecutor` generates after `prompt`, by plain recomputation."""
    context = b""
    for token in prompt:
        context = _digest(context, token)
    generated: list[int] = []
    for _ in range(num_tokens):
        generated.append(_token(context, vocab_size))
        context = _digest(context, generated[-1])
    return tuple(generated)


class _Context:
    """The tokens of one request and the digest of each prefix: `digests[p]` covers tokens 0..p."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.digests: list[bytes] = []
        self.poisoned = False
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        self.digests.append(_digest(self.digests[-1] if self.digests else b"", token))


class ContextExecutor:
    """Checks every read and write of a plan; each plan takes `seconds` of virtual time.

    Raises:
        CorruptContext: from `submit`.
    """

    def __init__(
        self,
        block_size: int,
        groups: tuple[CacheGroup, ...] = (CacheGroup(),),
        vocab_size: int = 50,
        clock: VirtualClock | None = None,
        seconds: float = 0.001,
        fault: FaultFn = no_fault,
    ) -> None:
        self._block_size = block_size
        self._groups = groups
        self._vocab_size = vocab_size
        self._clock = clock if clock is not None else VirtualClock()
        self._seconds = seconds
        self._fault = fault
        self._memory: dict[tuple[int, int], tuple[int, bytes]] = {}
        self._contexts: dict[str, _Context] = {}
        self._queue: deque[tuple[StepPlan, StepResult]] = deque()

    def submit(self, plan: StepPlan) -> None:
        """Run the plan (collected later)."""
        for request_id in plan.released:
            del self._contexts[request_id]
        for request, generated in plan.admitted:
            if request.id in self._contexts:
                raise CorruptContext(f"{request.id!r} is admitted twice without a release")
            self._contexts[request.id] = _Context(request.prompt + generated)
        self._check_in_flight(plan)
        error = self._fault(plan)
        if error is not None:
            for row in plan.rows:
                self._contexts[row.request_id].poisoned = True
        tokens = self._run(plan) if error is None else ()
        self._queue.append((plan, StepResult(plan.step, tokens, self._seconds, error=error)))

    def collect(self) -> StepResult:
        """The oldest result."""
        self._clock.advance(self._seconds)
        return self._queue.popleft()[1]

    def close(self) -> None:
        """Nothing to stop."""

    def _run(self, plan: StepPlan) -> tuple[tuple[int, ...], ...]:
        # No row may lean on what another row of the same plan writes, nor lose what it reads: look twice.
        for row in plan.rows:
            self._check_reads(row)
        written: set[tuple[int, int]] = set()
        for row in plan.rows:
            self._write(row, written)
        for row in plan.rows:
            self._check_reads(row)
        return tuple(self._sample(row) for row in plan.rows)

    def _check_reads(self, row: Row) -> None:
        context = self._contexts[row.request_id]
        if context.poisoned:
            return
        for g, group in enumerate(self._groups):
            first = 0 if group.window is None else max(0, row.start - group.window + 1)
            for position in range(first, row.start):
                found = self._memory.get(self._slot(row, g, position))
                if found != (g, context.digests[position]):
                    raise CorruptContext(
                        f"{row.request_id!r} reads a strange position {position} in group {g}"
                    )

    def _write(self, row: Row, written: set[tuple[int, int]]) -> None:
        context = self._contexts[row.request_id]
        for g in range(len(self._groups)):
            for position in range(row.start, row.start + row.count):
                slot = self._slot(row, g, position)
                if slot in written:
                    raise CorruptContext(
                        f"{row.request_id!r} writes position {position} where another row does"
                    )
                written.add(slot)
                digest = b"poison" if context.poisoned else context.digests[position]
                self._memory[slot] = (g, digest)

    def _slot(self, row: Row, group: int, position: int) -> tuple[int, int]:
        table = row.blocks[group]
        if len(table) * self._block_size < row.start + row.count:
            raise CorruptContext(f"{row.request_id!r}: the table of group {group} is too short")
        block = table[position // self._block_size]
        if block == NO_BLOCK:
            raise CorruptContext(f"{row.request_id!r} needs position {position} of group {group}: let go")
        return block, position % self._block_size

    def _sample(self, row: Row) -> tuple[int, ...]:
        if not row.num_samples:
            return ()
        context = self._contexts[row.request_id]
        if context.poisoned:
            return (0,)
        if len(context.digests) != row.start + row.count:
            raise CorruptContext(f"{row.request_id!r} samples before its last known token")
        token = _token(context.digests[-1], self._vocab_size)
        context.append(token)
        return (token,)

    def _check_in_flight(self, plan: StepPlan) -> None:
        """Nothing that a plan still in flight holds may be written by another request of this plan."""
        for earlier, _ in self._queue:
            held = {block: row.request_id for row in earlier.rows for block in self._touched(row)}
            for row in plan.rows:
                first = row.start // self._block_size
                for block in (block for table in row.blocks for block in table[first:]):
                    if held.get(block, row.request_id) != row.request_id:
                        raise CorruptContext(f"{row.request_id!r} writes block {block}, in flight elsewhere")

    def _touched(self, row: Row) -> list[int]:
        """Blocks that the row reads or writes; those before its windows it leaves alone."""
        blocks: list[int] = []
        for group, table in zip(self._groups, row.blocks, strict=True):
            seen = 0 if group.window is None else max(0, row.start - group.window + 1)
            blocks += table[seen // self._block_size :]
        return blocks
