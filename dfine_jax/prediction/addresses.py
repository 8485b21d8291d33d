"""Sources that are no files: streams and cameras by their names, and pictures at http addresses with their content."""

from __future__ import annotations

import base64
import http.client
import posixpath
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfine_jax.data.picture.images import EXTENSIONS
from dfine_jax.errors import UserError

VIDEO_EXTENSIONS = (
    ".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".m2ts", ".3gp",
    ".ogv", ".mjpeg", ".y4m",
)  # fmt: skip
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
CAMERA = re.compile(r"\d{1,3}|/dev/video\d{1,3}")
_SECRET = re.compile(r"(?<=://)[^/@\s]*@")  # user and password of a URL
_TIMEOUT_S = 15.0
_MOST_BYTES = 1 << 30
_PLAYLISTS = (".m3u8", ".m3u", ".mpd", ".sdp", ".mjpg")  # of streams
_FAILED = (OSError, http.client.HTTPException, ValueError)


def is_stream(source: str) -> bool:
    """Whether a source is a URL or a camera (a number, or /dev/video0), rather than a file."""
    if CAMERA.fullmatch(source):
        return source.startswith("/dev/") or not Path(source).exists()
    return bool(_URL.match(source))


def public_name(source: str) -> str:
    """The source without user name and password, for messages and results."""
    return _SECRET.sub("", source)


def local(source: str) -> str:
    """The path that a file address (``file:///...``) stands for; anything else as it is.

    Raises:
      UserError: it names another machine, as it does with two slashes.
    """
    parts = urllib.parse.urlsplit(source) if source.lower().startswith("file:/") else None
    if parts is None:
        return source
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{source} names the machine {parts.netloc}; give the path alone, or file:///PATH")
    return urllib.request.url2pathname(parts.path)


def is_video(address: str) -> bool:
    """Whether an address ends as those of videos and streams do."""
    return _ending(address) in VIDEO_EXTENSIONS + _PLAYLISTS


def is_picture(address: str) -> bool:
    """Whether there is a single picture at an address, by what the server says, else by the ending.

    Addresses that end like videos and those of other protocols are not asked for.
    """
    parts = urllib.parse.urlsplit(address)
    ending = _ending(address)
    if parts.scheme.lower() not in ("http", "https") or is_video(address):
        return False
    try:
        with _answer(address) as answer:
            kind = answer.headers.get_content_type() if "Content-Type" in answer.headers else ""
    except _FAILED:
        return ending in EXTENSIONS  # what is wrong is said when it is read
    if kind.startswith("image/"):
        return True
    return ending in EXTENSIONS and not kind.startswith(("video/", "multipart/", "audio/"))


def read_picture(address: str) -> bytes:
    """Content of the picture file at an address.

    Raises:
      UserError: no connection, or the server has no such file.
    """
    name = public_name(address)
    try:
        with _answer(address) as answer:
            content = answer.read(_MOST_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise UserError(f"{name}: the server answers {error.code} ({error.reason}); check the address") from error
    except _FAILED as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{name} cannot be read ({reason}); check the address and the connection") from error
    if len(content) > _MOST_BYTES:
        raise UserError(f"{name} has more than {_MOST_BYTES >> 20} MiB; fetch it yourself and name the file")
    return content


def file_name(address: str) -> str:
    """The last part of an address as the name of a file."""
    last = posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(address).path))
    return re.sub(r"[^\w.-]+", "_", last).strip("_.")[-100:] or "picture"


def _ending(address: str) -> str:
    return posixpath.splitext(urllib.parse.urlsplit(address).path)[1].lower()


@contextmanager
def _answer(address: str) -> Iterator[Any]:
    parts = urllib.parse.urlsplit(address)
    user, at, place = parts.netloc.rpartition("@")
    safe = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=place, path=safe, fragment="")))
    request.add_header("User-Agent", "dfine-jax")
    if at:
        secret = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_header("Authorization", f"Basic {secret}")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        yield answer
