"""`ridgeline serve`: the OpenAI-compatible server."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ridgeline.cli.flags import EngineFlags, Json, Model, flattened, given, parse_bytes
from ridgeline.cli.printing import load_progress, print_json

if TYPE_CHECKING:
    from ridgeline.engine.async_engine import AsyncEngine
    from ridgeline.engine.build import Prepared
    from ridgeline.engine.options import EngineOptions
    from ridgeline.serve.options import ServerOptions

_Seconds = float | None
_Count = int | None


@dataclass(frozen=True)
class ServerFlags:
    """One flag for each field of `ServerOptions`; None leaves its default."""

    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None
    port: Annotated[
        int | None, typer.Option("--port", "-p", help="Port; 0 takes a free one. Default 8000.")
    ] = None
    api_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--api-key",
            envvar="RIDGELINE_API_KEY",
            show_envvar=True,
            metavar="KEY",
            help="A key that requests may carry (may be repeated; several in the variable by spaces).",
        ),
    ] = None
    max_body_bytes: Annotated[
        int | None,
        typer.Option("--max-body", parser=parse_bytes, metavar="SIZE", help="Largest request body."),
    ] = None
    max_json_depth: Annotated[_Count, typer.Option(help="Deepest nesting of a request.")] = None
    max_header_bytes: Annotated[
        int | None, typer.Option("--max-header", parser=parse_bytes, metavar="SIZE", help="Largest headers.")
    ] = None
    max_headers: Annotated[_Count, typer.Option(help="Most headers of a request.")] = None
    header_timeout_s: Annotated[
        _Seconds, typer.Option("--header-timeout", help="Seconds for the headers.")
    ] = None
    body_timeout_s: Annotated[_Seconds, typer.Option("--body-timeout", help="Seconds for the body.")] = None
    write_timeout_s: Annotated[
        _Seconds, typer.Option("--write-timeout", help="Seconds that a client may read nothing.")
    ] = None
    keep_alive_s: Annotated[_Seconds, typer.Option("--keep-alive", help="Seconds a connection may idle.")] = (
        None
    )
    max_connections: Annotated[_Count, typer.Option(help="Most open connections.")] = None
    max_connections_per_ip: Annotated[_Count, typer.Option(help="The same for one address.")] = None
    max_prompts: Annotated[_Count, typer.Option(help="Most prompts in a completion request.")] = None
    max_sequences: Annotated[_Count, typer.Option(help="Most prompts x n of a request.")] = None
    max_messages: Annotated[_Count, typer.Option(help="Most messages of a chat request.")] = None
    drain_timeout_s: Annotated[
        _Seconds, typer.Option("--drain-timeout", help="Seconds for running requests at shutdown.")
    ] = None
    cors_origins: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", help="Origin that browsers may call from (repeatable)."),
    ] = None
    log_level: Annotated[str | None, typer.Option(help="error, warning, info or debug.")] = None

    def options(self) -> ServerOptions:
        """The server's options; raises ConfigError naming a field and its limit."""
        from ridgeline.serve.options import ServerOptions

        return ServerOptions(**given(self))


_DEFAULT_ENGINE = EngineFlags()
_DEFAULT_SERVER = ServerFlags()


@flattened
def serve(
    model: Model = None,
    server: ServerFlags = _DEFAULT_SERVER,
    engine: EngineFlags = _DEFAULT_ENGINE,
    json: Json = False,
) -> None:
    """Serve a model through the OpenAI API.

    Runs until Ctrl-C or SIGTERM; then running requests may finish.
    """
    from ridgeline.engine.build import prepare

    server_options = server.options()
    _check_port(server_options.host, server_options.port)
    options = engine.options(model)
    with load_progress(quiet=json) as progress:
        prepared = prepare(options, progress)
    if not json:
        _say(_summary(prepared))

    from ridgeline.serve.server import run

    def ready(address: str) -> None:
        name = prepared.config.served_model_name
        if json:
            print_json({"url": address, "model": name, "config": prepared.config})
            sys.stdout.flush()
        else:
            _say(_greeting(address, name, bool(server_options.api_keys)))

    run(lambda: _load(options, quiet=json), server_options, on_ready=ready)


def _check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on before a model is loaded for it."""
    import socket

    from ridgeline.engine.errors import ConfigError

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise ConfigError("host", f"{host!r} cannot be resolved ({error.strerror})") from None
    except OSError as error:
        raise ConfigError(
            "port", f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
        ) from None


def _load(options: EngineOptions, quiet: bool) -> AsyncEngine:
    from ridgeline.engine.async_engine import AsyncEngine

    with load_progress(quiet) as progress:
        return AsyncEngine.from_options(options, progress=progress)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _summary(prepared: Prepared) -> str:
    """What will run, in four lines; `ridgeline explain` has the reasons."""
    from ridgeline.cost.memory import human_bytes

    config, ledger = prepared.config, prepared.ledger
    tokens = config.num_blocks * config.block_size
    return (
        f"{config.served_model_name}: {prepared.source.path}\n"
        f"  {config.backend} backend ({config.isa_tier}), {config.num_threads} threads, "
        f"weights {config.weights}\n"
        f"  KV cache {human_bytes(config.kv_memory_bytes)} ({config.kv_dtype}): {tokens:,} tokens, "
        f"{config.max_num_seqs} requests at once, {config.max_model_len:,} tokens each\n"
        f"  memory {human_bytes(ledger.total_bytes)} in all; `ridgeline explain` has every reason"
    )


def _greeting(address: str, name: str, needs_key: bool) -> str:
    key = " -H 'Authorization: Bearer KEY'" if needs_key else ""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}'
    return (
        f"ready at {address} (Ctrl-C ends it). Try:\n"
        f"  curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    )
