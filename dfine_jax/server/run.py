"""An address, and the server on it until it is told to stop."""

from __future__ import annotations

import contextlib
import errno
import math
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from dfine_jax.errors import UserError
from dfine_jax.server.limits import Limits

_BACKLOG = 512  # connections that wait to be taken


def bind(host: str, port: int) -> socket.socket:
    """A socket of this address, which nobody can connect to before ``listen``.

    Args:
      port: 0 for any that is free.

    Raises:
      UserError: the address is not one of this machine, is taken, or may not be had.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port} must lie between 0 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise UserError(f"--host {host} is no address; 127.0.0.1 is this machine, 0.0.0.0 all its networks") from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        return bound
    except OSError as error:
        bound.close()
        raise _refused(error, host, port) from error


def url(bound: socket.socket) -> str:
    """The address for a browser."""
    name, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name, str(name))
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def listen(bound: socket.socket) -> None:
    """Let clients connect; they wait for ``run``.

    Raises:
      UserError: another program has taken the address meanwhile.
    """
    try:
        bound.listen(_BACKLOG)
    except OSError as error:
        raise _refused(error, *bound.getsockname()[:2]) from error


def run(app: ASGIApp, bound: socket.socket, limits: Limits) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress are answered then. A second signal ends at once."""
    config = uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False, server_header=False, ws="none",
        backlog=_BACKLOG, timeout_graceful_shutdown=math.ceil(limits.seconds) + 1,
    )  # fmt: skip
    with _signals_that_end():
        uvicorn.Server(config).run(sockets=[bound])


@contextlib.contextmanager
def _signals_that_end() -> Iterator[None]:
    """uvicorn raises again the signals that it was stopped by; that is no accident here."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refused(error: OSError, host: str, port: int) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(f"port {port} of {host} is taken by another program; stop it, or give --port {port + 1}")
    if error.errno == errno.EACCES:
        return UserError(f"port {port} is reserved for administrators; give --port 8000 or any from 1024 on")
    return UserError(f"{host}:{port} cannot be served on ({error.strerror}); give an address of this machine: --host")
