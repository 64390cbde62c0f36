"""What the operator may say about the server; the engine has its own options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Limits of the HTTP server. Every default is finite.

    Attributes:
        host, port: where to listen; port 0 takes a free one. Loopback by default.
        api_keys: keys of which a request must carry one (`Authorization: Bearer KEY`); empty: no keys needed.
        served_model_names: names accepted in `model`; the first is reported. Empty: the engine's own name.
        max_body_bytes: larger request bodies are refused with 413.
        max_json_depth: deeper nesting of arrays and objects is refused with 400.
        max_header_bytes, max_headers: request line and headers together; 431 beyond.
        header_timeout_s: from connecting, or a request's first byte, to the end of its headers; 408.
        body_timeout_s: from the end of the headers to the end of the body; 408.
        write_timeout_s: a client that reads nothing for so long while data waits is cut off.
        keep_alive_s: an idle connection is closed after so long.
        max_connections: open connections; 503 beyond.
        max_connections_per_ip: open connections of one address; 429 beyond.
        max_prompts: prompts in one completion request.
        max_sequences: prompts x n of one request.
        max_messages: messages in one chat request.
        drain_timeout_s: on SIGTERM running requests may take so long to finish.
        cors_origins: origins that browsers may call from; empty: no cross-origin access.
        log_level: of the server's own log (`error`, `warning`, `info` (a line a request), `debug`).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_names: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 1024 * 1024
    max_json_depth: int = 64
    max_header_bytes: int = 64 * 1024
    max_headers: int = 128
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    keep_alive_s: float = 75.0
    max_connections: int = 4096
    max_connections_per_ip: int = 2048
    max_prompts: int = 1024
    max_sequences: int = 1024
    max_messages: int = 4096
    drain_timeout_s: float = 30.0
    cors_origins: tuple[str, ...] = ()
    log_level: str = "warning"

    def __post_init__(self) -> None:
        from ridgeline.engine.errors import ConfigError

        if not 0 <= self.port <= 65535:
            raise ConfigError("port", f"must be between 0 and 65535, got {self.port}")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(name, f"must be greater than 0, got {getattr(self, name)}")
        if self.log_level not in LOG_LEVELS:
            raise ConfigError("log_level", f"must be one of {', '.join(LOG_LEVELS)}, got {self.log_level!r}")
        for key in self.api_keys:
            if not key or not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError("api_keys", "a key is printable ASCII without spaces, and not empty")


LOG_LEVELS = ("error", "warning", "info", "debug")
_POSITIVE = (
    "max_body_bytes",
    "max_json_depth",
    "max_header_bytes",
    "max_headers",
    "header_timeout_s",
    "body_timeout_s",
    "write_timeout_s",
    "keep_alive_s",
    "max_connections",
    "max_connections_per_ip",
    "max_prompts",
    "max_sequences",
    "max_messages",
    "drain_timeout_s",
)
