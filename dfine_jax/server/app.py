"""The web application: what is answered at which address."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dfine_jax import __version__
from dfine_jax.errors import UserError
from dfine_jax.prediction.result import DetectionResult
from dfine_jax.server import answers
from dfine_jax.server.engine import Engine
from dfine_jax.server.limits import Limits
from dfine_jax.server.log import Logged
from dfine_jax.server.options import Options, options
from dfine_jax.server.pictures import TooManyPixelsError, UnknownFormatError
from dfine_jax.server.received import Received, Upload, receive
from dfine_jax.serving import page_files
from dfine_jax.system.wording import counted

logger = logging.getLogger(__name__)

_RETRY = {"Retry-After": "1"}  # seconds
_ADDRESSES = {
    404: "there is nothing at this address; POST /detect takes pictures, GET /health and /metadata tell of the server",
    405: "not by this method; POST /detect takes pictures, the other addresses are for GET",
}
T = TypeVar("T")


class Detected(NamedTuple):
    """The answer for one picture, not yet in its form."""

    result: DetectionResult
    name: str
    times_ms: dict[str, float]


class Service:
    """Answers requests by an engine.

    Args:
      name: of the model, told to clients.
    """

    def __init__(self, engine: Engine, name: str, limits: Limits) -> None:
        self.engine, self.name, self.limits = engine, name, limits
        self.requests = 0  # in progress

    async def health(self, request: Request) -> Response:
        """Whether requests are answered."""
        del request
        engine = self.engine
        counts = {
            "requests": self.requests,
            "waiting": engine.waiting,
            "runs": engine.runs,
            "pictures": engine.pictures,
        }
        return JSONResponse({"status": "ok", **counts})

    async def metadata(self, request: Request) -> Response:
        """What the model is and what is taken; the page reads it too."""
        del request
        return JSONResponse(self.description())

    def description(self) -> dict[str, Any]:
        """Of model, runtime and limits, as plain values."""
        detector = self.engine.detector
        return page_files.description(
            "server",
            variant=self.name,
            task="segment" if detector.segments else "detect",
            class_names=detector.classes.names,
            category_ids=detector.classes.ids,
            threshold=detector.threshold,
            mask_threshold=detector.mask_threshold,
            input={"size_hw": list(detector.input_size_px)},
            runs_in=self.engine.describe(),
            batch=self.engine.batch,
            limits=dataclasses.asdict(self.limits),
            dfine_jax_version=__version__,
        )

    async def detect(self, request: Request) -> Response:
        """Objects in the pictures of a request."""
        limits = self.limits
        if self.requests >= limits.requests:
            raise HTTPException(503, f"{self.requests} requests are in progress, which is the limit; try again", _RETRY)
        self.requests += 1
        received: Received | None = None
        try:
            async with asyncio.timeout(limits.seconds):
                received = await receive(request, limits)
                return await _while_connected(request, self._answer(request, received))
        except TimeoutError:
            if received is None:
                raise HTTPException(408, f"the body did not arrive within {limits.seconds:g} s") from None
            reason = f"no answer within {limits.seconds:g} s, the server has too much to do; try again"
            raise HTTPException(503, reason, _RETRY) from None
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody reads
        finally:
            self.requests -= 1

    async def _answer(self, request: Request, received: Received) -> Response:
        try:
            asked = options(received.fields, request.headers.get("accept", ""), self.engine.detector)
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        if asked.form in ("png", "jpeg") and len(received.uploads) > 1:
            raise HTTPException(400, f"format {asked.form} is for one picture in a request; send them one by one")
        found = await _together([self._picture(upload, asked, len(received.uploads)) for upload in received.uploads])
        objects = sum(len(one.result) for one in found)
        request.state.note = f"{counted(len(found), 'picture')}, {counted(objects, 'object')}"
        if asked.form in ("png", "jpeg"):
            content = await self.engine.aside(answers.drawn, found[0].result, asked)
            return Response(content, media_type=answers.MEDIA_TYPES[asked.form])
        if asked.form == "coco":
            ids = answers.image_ids([one.name for one in found])
            lists = [
                await self.engine.aside(answers.coco, one.result, asked, i) for one, i in zip(found, ids, strict=True)
            ]
            return JSONResponse([entry for entries in lists for entry in entries])
        bodies = [await self._plain(one, asked) for one in found]
        if len(bodies) == 1:
            return JSONResponse(bodies[0])
        return JSONResponse({"results": [{"file": one.name, **body} for one, body in zip(found, bodies, strict=True)]})

    async def _plain(self, found: Detected, asked: Options) -> dict[str, Any]:
        return {**await self.engine.aside(answers.plain, found.result, asked), "times_ms": found.times_ms}

    async def _picture(self, upload: Upload, asked: Options, of: int) -> Detected:
        begun = time.perf_counter()
        try:
            picture = await self.engine.read(upload.content)
        except UserError as error:
            status = {UnknownFormatError: 415, TooManyPixelsError: 413}.get(type(error), 400)
            where = f"{upload.name or 'picture'}: " if of > 1 or upload.name else ""
            raise HTTPException(status, f"{where}{error}") from error
        read = time.perf_counter()
        result, started, ended = await self.engine.detect(picture, asked.chosen)
        spans = {"decode": read - begun, "wait": started - read, "network": ended - started}
        return Detected(result, upload.name, {name: round(1000 * span, 2) for name, span in spans.items()})


async def _together(jobs: Sequence[Any]) -> list[Any]:
    """Results of several at once; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _while_connected(request: Request, answer: Any) -> Response:
    """The answer, unless the client leaves: then what waits for it is given up.

    Raises:
      ClientDisconnect: it has left.
    """
    work, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _page(name: str) -> Callable[[Request], Response]:
    """What answers with a file of the page."""
    response = Response(
        page_files.content(name), media_type=page_files.content_type(name), headers={"Cache-Control": "no-cache"}
    )
    return lambda request: response


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reason = _ADDRESSES.get(error.status_code, error.detail)
    request.state.note = str(error.__cause__ or reason)  # without the name of the client's file
    return JSONResponse({"error": reason}, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    request.state.note = type(error).__name__
    return JSONResponse({"error": "the server has failed at this; its log says why"}, 500)


def application(engine: Engine, name: str, limits: Limits, origins: Sequence[str] = ()) -> Logged:
    """The ASGI application.

    Args:
      name: of the model, told to clients.
      origins: of pages of other addresses that may read answers (CORS); none by default.
    """
    service = Service(engine, name, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with engine:
            yield

    routes = [
        Route("/detect", service.detect, methods=["POST"]),
        Route("/health", service.health),
        *(Route(f"/{name}", service.metadata) for name in ("metadata", page_files.DESCRIPTION)),
        Route("/", _page("index.html")),
        *(Route(f"/{name}", _page(name)) for name in (*page_files.PAGE, *page_files.SERVER)),
    ]
    cors = Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["*"])
    handlers: dict[Any, Any] = {HTTPException: _refused, Exception: _failed}
    middleware = [cors] if origins else []
    return Logged(Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan))
