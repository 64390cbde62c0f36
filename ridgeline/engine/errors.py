"""What can go wrong for a user. Each message names the thing and the limit; none shows a traceback."""

from __future__ import annotations


class RidgelineError(Exception):
    """Root of the errors that are the user's or the environment's, not a bug."""


class ModelNotFound(RidgelineError):
    """The model is neither here nor to be had (offline, no such name, checksum wrong)."""


class UnsupportedModel(RidgelineError):
    """The model needs a feature that is not here; the message names the feature."""


class ConfigError(RidgelineError):
    """An engine option that cannot be honoured. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.reason = message


class InvalidParameter(RidgelineError, ValueError):
    """A request parameter that cannot be honoured. `param` names it, the message says the limit."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param
        self.reason = message


class ContextLengthExceeded(InvalidParameter):
    """Prompt, or prompt and max_tokens, longer than the context.

    `num_tokens` is what was asked for (a lower bound where the text was refused before it was
    tokenized), `limit_tokens` what fits.
    """

    def __init__(self, param: str, message: str, *, num_tokens: int, limit_tokens: int) -> None:
        super().__init__(param, message)
        self.num_tokens = num_tokens
        self.limit_tokens = limit_tokens


class EngineOverloaded(RidgelineError):
    """The bounded queue is full. `retry_after_s` estimates when there is room again."""

    def __init__(self, num_waiting: int, max_queue: int, retry_after_s: float) -> None:
        super().__init__(
            f"the queue is full: {num_waiting} waiting, at most {max_queue}; retry in {retry_after_s:.0f} s"
        )
        self.num_waiting = num_waiting
        self.max_queue = max_queue
        self.retry_after_s = retry_after_s


class EngineClosed(RidgelineError):
    """The engine is draining, closed, or died of an internal error (then the message says which)."""
