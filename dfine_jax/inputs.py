"""What to detect in, as a person names it: pictures, videos, streams, cameras; and what the results are called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dfine_jax import video
from dfine_jax.data.images import EXTENSIONS
from dfine_jax.errors import UserError

_SCHEME_OR_QUERY = re.compile(r"^[a-z][a-z0-9+.-]*://|[?#].*$", re.IGNORECASE)


class Picture(NamedTuple):
    """An image to detect in."""

    path: Path
    name: str  # path below the given folder, or the file name


class Clip(NamedTuple):
    """A video file, stream or camera to detect in."""

    source: str  # path, URL or camera number
    name: str  # path below the given folder, file name, or the address without password
    stem: str  # the name as a file without ending


class Inputs(NamedTuple):
    """All there is to detect in, in the order it was named."""

    pictures: list[Picture]
    clips: list[Clip]


def find_inputs(sources: Sequence[str], exclude: Iterable[Path] = ()) -> Inputs:
    """Pictures and videos of the sources: files, URLs and cameras as given, folders searched recursively by path.

    Args:
      exclude: folders left out of the search, so that results are not taken for input.

    Raises:
      UserError: a source is missing, or a folder holds nothing.
    """
    found = Inputs([], [])
    for source in sources:
        path = Path(source)
        if video.is_stream(source):
            found.clips.append(_stream(source))
        elif path.is_dir():
            _search(path, [folder.resolve() for folder in exclude], found)
        elif not path.exists():
            raise UserError(
                f"{source} does not exist; give an image, a folder, a video, an address (rtsp://...) or a camera (0)"
            )
        else:
            _add(path, path.name, found)
    return found


def _search(root: Path, exclude: list[Path], found: Inputs) -> None:
    known = EXTENSIONS + video.EXTENSIONS
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in known and p.is_file())
    outside = [folder for folder in exclude if folder != root.resolve()]
    files = [p for p in files if not any(p.resolve().is_relative_to(folder) for folder in outside)]
    if not files:
        raise UserError(f"folder {root} holds no images ({', '.join(EXTENSIONS)}) and no videos; name another folder")
    for path in files:
        _add(path, path.relative_to(root).as_posix(), found)


def _add(path: Path, name: str, found: Inputs) -> None:
    if path.suffix.lower() in video.EXTENSIONS:
        found.clips.append(Clip(str(path), name, str(Path(name).with_suffix(""))))
    else:
        found.pictures.append(Picture(path, name))


def _stream(source: str) -> Clip:
    if "://" not in source:
        name = f"camera{source.removeprefix('/dev/video')}"
        return Clip(source, name, name)
    name = video.public_name(source)
    stem = re.sub(r"[^\w.-]+", "_", _SCHEME_OR_QUERY.sub("", _SCHEME_OR_QUERY.sub("", name))).strip("_.")
    return Clip(source, name, stem or "stream")


def image_ids(pictures: Sequence[Picture], annotations: Path | None) -> list[int | str]:
    """Image id of each picture: its name, or what the annotation file says.

    Raises:
      UserError: the file is no COCO annotation, or lacks a picture.
    """
    if annotations is None:
        return [picture.name for picture in pictures]
    try:
        known = {image["file_name"]: image["id"] for image in json.loads(annotations.read_text())["images"]}
    except OSError as error:
        raise UserError(f"annotation file {annotations} cannot be read ({error.strerror}); check its name") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{annotations} is not a COCO annotation file (images with file_name and id); give one, or leave "
            "--annotations away to have file names as ids"
        ) from error
    absent = [p.name for p in pictures if p.name not in known and p.path.name not in known]
    if absent:
        raise UserError(
            f"{annotations} has no image {absent[0]!r} ({len(absent)} of {len(pictures)} are absent); give the "
            "annotations of these images"
        )
    return [known[p.name] if p.name in known else known[p.path.name] for p in pictures]


def result_files(inputs: Inputs) -> tuple[list[Path], list[Path]]:
    """Relative paths for the drawn pictures and videos: the names of the inputs, numbered where they repeat."""
    taken: set[Path] = set()
    pictures = []
    for picture in inputs.pictures:
        name = Path(picture.name)
        suffix = ".jpg" if name.suffix.lower() in (".jpg", ".jpeg") else ".png"
        pictures.append(_unused(str(name.with_suffix("")), suffix, taken))
    return pictures, [_unused(clip.stem, ".mp4", taken) for clip in inputs.clips]


def _unused(stem: str, suffix: str, taken: set[Path]) -> Path:
    path, number = Path(stem + suffix), 2
    while path in taken:
        path, number = Path(f"{stem}_{number}{suffix}"), number + 1
    taken.add(path)
    return path


def refuse_overwriting(inputs: Inputs, targets: Iterable[Path]) -> None:
    """UserError when a target is one of the inputs."""
    originals = {picture.path.resolve() for picture in inputs.pictures}
    originals |= {Path(clip.source).resolve() for clip in inputs.clips if not video.is_stream(clip.source)}
    for target in targets:
        if target.resolve() in originals:
            raise UserError(f"the drawn result would replace {target}; choose another --out")
