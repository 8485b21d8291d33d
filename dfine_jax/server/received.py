"""What a client sends: pictures as the body, as files of a form or as JSON, and parameters beside them."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, NoReturn

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from dfine_jax.server.limits import Limits

Fields = dict[str, list[str]]  # values of each parameter
PICTURE_FIELDS = ("file", "files", "image", "images", "picture", "photo")
_HOW = "curl -F file=@photo.jpg ADDRESS, or curl --data-binary @photo.jpg ADDRESS"
_DRAINED_BYTES = 50_000_000  # read and thrown away, so that a client that is still sending gets to see the answer
_FIELDS, _FIELD_BYTES = 32, 16_384  # of a form
_NAME_LETTERS = 100


class Upload(NamedTuple):
    """A picture as it came."""

    name: str  # as the client calls the file; empty: without a name
    content: bytes


class Received(NamedTuple):
    """A request."""

    uploads: list[Upload]  # at least one
    fields: Fields


async def receive(request: Request, limits: Limits) -> Received:
    """Read a request.

    Raises:
      HTTPException: 400, 413 or 415 with the reason.
    """
    if encoding := request.headers.get("content-encoding", ""):
        _refuse(415, f"content-encoding {encoding[:20]} is not read; send the picture as it is")
    content = await _body(request, limits.body_bytes)
    if not content:
        _refuse(400, f"the body is empty; send a picture: {_HOW}")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match kind:
        case "multipart/form-data":
            uploads, fields = await _form(request.headers, content, limits)
        case "application/json":
            uploads, fields = _json(content)
        case _:  # pictures of any kind, and the type that curl --data-binary says by itself
            uploads, fields = [Upload("", content)], {}
    if len(uploads) > limits.pictures:
        _refuse(413, f"{len(uploads)} pictures in one request; {limits.pictures} are the limit")
    for name, value in request.query_params.multi_items():
        fields.setdefault(name, []).append(value)
    return Received(uploads, fields)


async def _body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else 0
    reason = f"the body is larger than {limit / 1e6:g} MB, which is the limit; make the picture smaller"
    if size > limit + _DRAINED_BYTES or (size > limit and "expect" in request.headers):
        _refuse(413, reason)  # nothing of it was sent, or too much would come
    parts, received, fits = [], 0, size <= limit
    async for chunk in request.stream():
        received += len(chunk)
        fits = fits and received <= limit
        if fits:
            parts.append(chunk)
            continue
        parts.clear()
        if received > limit + _DRAINED_BYTES:
            break
    if not fits:
        _refuse(413, reason)
    return b"".join(parts)


class _InMemory(MultiPartParser):
    """Files of a form are never written to the disk."""

    spool_max_size = 1 << 62


async def _form(headers: Headers, content: bytes, limits: Limits) -> tuple[list[Upload], Fields]:
    async def stream() -> AsyncIterator[bytes]:
        yield content

    try:
        form = await _InMemory(
            headers,
            stream(),  # pyright: ignore[reportArgumentType]
            max_files=limits.pictures,
            max_fields=_FIELDS,
            max_part_size=_FIELD_BYTES,
        ).parse()
    except MultiPartException as error:
        _refuse(400, f"the form cannot be read ({error.message}); send pictures as files: {_HOW}")
    uploads: list[Upload] = []
    fields: Fields = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            uploads.append(Upload(_file_name(value.filename), await value.read()))
        elif name in PICTURE_FIELDS:
            _refuse(400, f"field {name} of the form is text, not a file: {_HOW}")
        else:
            fields.setdefault(name, []).append(value)
    await form.close()
    if not uploads:
        _refuse(400, f"the form holds no file: {_HOW}")
    return uploads, fields


def _json(content: bytes) -> tuple[list[Upload], Fields]:
    """{"image": BASE64} or {"images": [BASE64, ...]}, data URLs too, and parameters beside."""
    example = '{"image": "the picture in base64", "threshold": 0.5}'
    try:
        values: Any = json.loads(content)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        _refuse(400, f"the body is no JSON object; send {example}, or the picture itself without that content-type")
    images = values.pop("images", None)
    images = [values.pop("image", None)] if images is None else images
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        _refuse(400, f"the JSON holds no image; send {example}")
    uploads = [Upload("", _decoded(image)) for image in images]
    fields: Fields = {}
    for name, value in values.items():
        many = value if isinstance(value, list) else [value]
        if not all(isinstance(one, (str, int, float)) for one in many):
            _refuse(400, f"{name[:40]!r} in the JSON is neither text nor a number nor a list of these")
        fields[name] = [str(one) for one in many]
    return uploads, fields


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(re.sub(r"\Adata:[^,]{0,100},|\s", "", text), validate=True)
    except (binascii.Error, ValueError):
        _refuse(400, "an image in the JSON is not written in base64")


def _file_name(name: str | None) -> str:
    """The last part of a file name, short and in one line."""
    last = re.split(r"[/\\]", name or "")[-1]
    return "".join(letter for letter in last if letter.isprintable())[:_NAME_LETTERS]


def _refuse(status: int, reason: str) -> NoReturn:
    raise HTTPException(status, reason)
