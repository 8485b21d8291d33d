"""A line for each request: who, what, answer, how long. Parameters and headers may be private and are left out."""

from __future__ import annotations

import logging
import time
import urllib.parse
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_PATH_LETTERS = 80


class Logged:
    """An ASGI application whose requests are logged; ``request.state.note`` is written at the end of the line."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        status: Any = "-"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        begun = time.perf_counter()
        try:
            await self.app(scope, receive, watched)
        finally:
            path = urllib.parse.quote(scope["path"])[:_PATH_LETTERS]
            client = (scope.get("client") or ("-",))[0]
            note = scope["state"].get("note", "")
            taken_ms = 1000 * (time.perf_counter() - begun)
            line = f"{client} {scope['method']} {path} {status} {taken_ms:.0f} ms {note}"
            logger.info("%s", line.rstrip())
