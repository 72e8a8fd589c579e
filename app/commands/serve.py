"""`bedside serve`: the engine as an OpenAI-compatible server, for other programs and for Bedside on other machines."""

from __future__ import annotations

import logging
import socket
from typing import Annotated

import typer

from app.commands.loading import show_loading
from app.config import read_settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
SHUTDOWN_S = 5  # how long an answer may still go on after Ctrl-C


def serve(
    host: Annotated[str, typer.Option(help="Address to bind; the default serves this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve on; 0: any free one.")] = 8000,
) -> None:
    """Serves the model to OpenAI clients: /v1/chat/completions, /v1/models, /health, /metrics."""
    import uvicorn

    from app.server import make_app
    from model.generator import LocalGenerator

    settings = read_settings()
    with _bind(host, port) as listener:  # before minutes of reading weights
        with show_loading() as on_progress:
            generator = LocalGenerator.load(settings.checkpoint, **settings.load_options, on_progress=on_progress)
        hosts = _LOOPBACK if host in _LOOPBACK else ("*",)
        app = make_app(generator, settings.sampling, settings.server_key, hosts)
        config = uvicorn.Config(
            app, lifespan="off", ws="none", server_header=False, timeout_graceful_shutdown=SHUTDOWN_S
        )
        logging.getLogger("uvicorn.access").addFilter(drop_query)
        name = f"[{host}]" if ":" in host else host
        typer.echo(f"Bedside: {generator.info.name} at http://{name}:{listener.getsockname()[1]}/v1")
        uvicorn.Server(config).run(sockets=[listener])


def drop_query(record: logging.LogRecord) -> bool:
    """Cuts the access log's path (its third argument) before the "?": the log must not hold what somebody wrote."""
    if isinstance(record.args, tuple) and len(record.args) > 2:
        path = str(record.args[2]).partition("?")[0]
        record.args = (*record.args[:2], path, *record.args[3:])
    return True


def _bind(host: str, port: int) -> socket.socket:
    """Raises OSError naming the address."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"Cannot serve on {host}:{port}: {error.strerror}; choose another --host or --port.") from error
    return listener
