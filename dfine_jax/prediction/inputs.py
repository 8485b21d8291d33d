"""What to detect in, as a person names it: pictures, videos, streams, cameras; and what the results are called."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from dfine_jax.data.picture.images import EXTENSIONS, UNREADABLE_EXTENSIONS, read_image
from dfine_jax.errors import UserError
from dfine_jax.prediction import addresses, video
from dfine_jax.system.files import read_json
from dfine_jax.system.search import files_like, find_files

_SCHEME_OR_QUERY = re.compile(r"^[a-z][a-z0-9+.-]*://|[?#].*$", re.IGNORECASE)


_FRAME = re.compile(r"_\d{6,}\.jpg$")


class Picture(NamedTuple):
    """An image to detect in."""

    path: Path
    name: str  # path below the given folder, that before the placeholders of a pattern, or the file name
    address: str = ""  # where it is on a server; the path is then but a name

    @property
    def place(self) -> str:
        """Path or address, for people."""
        return video.public_name(self.address) or str(self.path)

    def read(self, any_size: bool = False) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels, upright. Arguments and errors as ``read_image``."""
        if not self.address:
            return read_image(self.path, any_size=any_size)
        return read_image(self.place, encoded=addresses.read_picture(self.address), any_size=any_size)


class Clip(NamedTuple):
    """A video file, stream or camera to detect in."""

    source: str  # path, URL or camera number
    name: str  # path below the given folder, file name, or the address without password
    stem: str  # the name as a file without ending


class Inputs(NamedTuple):
    """All there is to detect in, in the order it was named."""

    pictures: list[Picture]
    clips: list[Clip]
    notes: list[str]  # what was left out


def find_inputs(sources: Sequence[str], exclude: Iterable[Path] = ()) -> Inputs:
    """Pictures and videos of the sources: files, URLs and cameras as given, folders searched recursively by path.

    A pattern (``shots/*.jpg``) stands for the files like it. A file that is named twice is taken once.

    Args:
      exclude: folders left out of the search, so that results are not taken for input.

    Raises:
      UserError: a source is missing, or a folder holds nothing.
    """
    found = Inputs([], [], [])
    for source in map(addresses.local, sources):
        path = Path(source)
        if not source.strip():
            raise UserError("an empty name was given; give an image, a folder, a video, an address or a camera")
        if video.is_stream(source):
            if addresses.is_picture(source):
                name = addresses.file_name(source)
                found.pictures.append(Picture(Path(name), name, source))
            else:
                found.clips.append(_stream(source))
        elif path.is_dir():
            _search(path, [folder.resolve() for folder in exclude], found)
        elif path.exists():
            _add(path, path.name, found)
        elif like := files_like(source):
            for file in like[1]:
                _add(file, file.relative_to(like[0]).as_posix(), found)
        else:
            raise UserError(
                f"{source} does not exist; give an image, a folder, a video, an address (rtsp://...) or a camera (0)"
            )
    return _once(found)


def _search(root: Path, exclude: list[Path], found: Inputs) -> None:
    searched = find_files(root, EXTENSIONS + UNREADABLE_EXTENSIONS + video.EXTENSIONS)
    outside = [folder for folder in exclude if folder != root.resolve()]
    files = [p for p in searched.files if not any(p.resolve().is_relative_to(folder) for folder in outside)]
    unreadable = [p for p in files if p.suffix.lower() in UNREADABLE_EXTENSIONS]
    notes = [searched.note()]
    if unreadable:
        kinds = ", ".join(sorted({p.suffix.lower() for p in unreadable}))
        notes.append(
            f"{len(unreadable)} pictures of kinds that cannot be read ({kinds}) left out; convert them to JPEG or PNG "
            f"(first: {unreadable[0].relative_to(root)})"
        )
    notes = [note for note in notes if note]
    files = [p for p in files if p.suffix.lower() not in UNREADABLE_EXTENSIONS]
    if not files:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(
            f"folder {root} holds no images ({', '.join(EXTENSIONS)}) and no videos{why}; name another folder"
        )
    found.notes.extend(f"{root}: {note}" for note in notes)
    for path in files:
        _add(path, path.relative_to(root).as_posix(), found)


def _add(path: Path, name: str, found: Inputs) -> None:
    if path.suffix.lower() in video.EXTENSIONS:
        found.clips.append(Clip(str(path), name, str(Path(name).with_suffix(""))))
    else:
        found.pictures.append(Picture(path, name))


def _once(found: Inputs) -> Inputs:
    """Without files that several sources name."""
    pictures = {picture.address or os.path.abspath(picture.path): picture for picture in reversed(found.pictures)}
    clips = {
        clip.source if video.is_stream(clip.source) else os.path.abspath(clip.source): clip
        for clip in reversed(found.clips)
    }
    repeated = len(found.pictures) + len(found.clips) - len(pictures) - len(clips)
    notes = found.notes + [f"{repeated} files that are named more than once are taken once"] * bool(repeated)
    return Inputs(list(reversed(pictures.values())), list(reversed(clips.values())), notes)


def _stream(source: str) -> Clip:
    if "://" not in source:
        name = f"camera{source.removeprefix('/dev/video')}"
        return Clip(source, name, name)
    name = video.public_name(source)
    stem = re.sub(r"[^\w.-]+", "_", _SCHEME_OR_QUERY.sub("", _SCHEME_OR_QUERY.sub("", name))).strip("_.")
    return Clip(source, name, stem[:100] or "stream")


def image_ids(inputs: Inputs, annotations: Path | None) -> list[int | str]:
    """Image id of each picture: its name, with so many of its folders that ids differ, or what the annotations say.

    An entry of the annotations belongs to a picture when its ``file_name``, folders included, ends the picture's path;
    of several the longest. Where none does, an entry of the same base name is taken if it is the only one.

    Raises:
      UserError: the file is no COCO annotation, names a picture twice, lacks a picture, or has one entry for several
        pictures.
    """
    pictures = inputs.pictures
    if annotations is None:
        paths = [picture.path if picture.address else Path(os.path.abspath(picture.path)) for picture in pictures]
        return list(distinct([picture.name for picture in pictures], paths))
    entries = _entries(annotations)
    by_base: dict[str, list[str]] = {}
    for name in entries:
        by_base.setdefault(posixpath.basename(name), []).append(name)
    found = [_entry_of(picture, entries, by_base, annotations) for picture in pictures]
    absent = [p.name for p, name in zip(pictures, found, strict=True) if name is None]
    if absent:
        raise UserError(
            f"{annotations} has no image {absent[0]!r} ({len(absent)} of {len(pictures)} are absent); give the "
            "annotations of these images"
        )
    owners: dict[str, Picture] = {}
    ids: list[int | str] = []
    for picture, name in zip(pictures, found, strict=True):
        image_id = entries[name or ""]
        other = owners.setdefault(repr(image_id), picture)
        if other is not picture:
            raise UserError(
                f"{annotations} has one image (id {image_id}) for both {other.place} and {picture.place}; write the "
                "folders into file_name, or predict one folder at a time"
            )
        ids.append(image_id)
    return ids


def _entries(annotations: Path) -> dict[str, int | str]:
    """Image ids by file name, as ``_key`` writes it."""
    entries: dict[str, int | str] = {}
    try:
        images = [(image["file_name"], image["id"]) for image in read_json(annotations)["images"]]
        keys = [_key(name) for name, _ in images]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{annotations} is not a COCO annotation file (images with file_name and id); give one, or leave "
            "--annotations away to have file names as ids"
        ) from error
    for key, (name, image_id) in zip(keys, images, strict=True):
        if entries.setdefault(key, image_id) != image_id:
            raise UserError(
                f"{annotations} lists {name!r} twice, with ids {entries[key]} and {image_id}; leave one of them"
            )
    return entries


def _key(name: str) -> str:
    """A file name with one kind of slash and one form of letters with accents, which file systems write in two ways."""
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


def _entry_of(
    picture: Picture, entries: Mapping[str, Any], by_base: Mapping[str, list[str]], annotations: Path
) -> str | None:
    whole = _key(str(picture.path if picture.address else os.path.abspath(picture.path)))
    parts = whole.split("/")
    for start in range(len(parts)):
        if (name := "/".join(parts[start:])) in entries:
            return name
    alike = by_base.get(parts[-1], [])
    if len(alike) > 1:
        raise UserError(
            f"{annotations} has {len(alike)} images named {parts[-1]} ({alike[0]}, {alike[1]}), none in the folder of "
            f"{picture.place}; keep the pictures in the folders that file_name says"
        )
    return alike[0] if alike else None


def distinct(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """The names, those that repeat with more and more of the folders of their paths, numbered where that is no help."""
    shown, depth = list(names), [len(Path(name).parts) for name in names]
    while len(counts := Counter(shown)) < len(shown):
        repeated = [i for i, name in enumerate(shown) if counts[name] > 1]
        longer = [i for i in repeated if depth[i] < len(paths[i].parts)]
        if not longer:
            taken = set(shown)
            for i in repeated[1:]:
                shown[i] = _unused(names[i], "", taken, " ({})")
            continue
        for i in longer:
            depth[i] += 1
            shown[i] = Path(*paths[i].parts[-depth[i] :]).as_posix()
    return shown


def clip_ids(inputs: Inputs) -> list[str]:
    """What results call each video: its name, as in ``image_ids`` where names repeat."""
    paths = [
        Path(clip.name) if video.is_stream(clip.source) else Path(os.path.abspath(clip.source)) for clip in inputs.clips
    ]
    return distinct([clip.name for clip in inputs.clips], paths)


def result_files(inputs: Inputs) -> tuple[list[Path], list[Path]]:
    """Relative paths for the drawn pictures and videos: the names of the inputs, numbered where they repeat.

    Names that differ only in capitals, or in how accents are stored, count as equal: some file systems hold one of
    them. A video gets another name where its frames (``NAME_000012``) have those of pictures, so that objects cut out
    of both do not meet.
    """
    taken: set[str] = set()
    pictures = []
    for picture in inputs.pictures:
        name = Path(picture.name)
        suffix = ".jpg" if name.suffix.lower() in (".jpg", ".jpeg") else ".png"
        pictures.append(_unused(name.with_suffix("").as_posix(), suffix, taken))
    taken |= {_FRAME.sub("", name) + ".mp4" for name in taken if _FRAME.search(name)}
    return [Path(name) for name in pictures], [Path(_unused(clip.stem, ".mp4", taken)) for clip in inputs.clips]


def result_stems(pictures: Sequence[Path]) -> list[Path]:
    """Relative paths without ending for files of another kind than the pictures: ``a.jpg`` and ``a.png`` differ too."""
    taken: set[str] = set()
    return [Path(_unused(path.with_suffix("").as_posix(), "", taken)) for path in pictures]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _unused(stem: str, suffix: str, taken: set[str], numbered: str = "_{}") -> str:
    name, number = stem + suffix, 2
    while _folded(name) in taken:
        name, number = f"{stem}{numbered.format(number)}{suffix}", number + 1
    taken.add(_folded(name))
    return name


def refuse_overwriting(inputs: Inputs, targets: Iterable[Path]) -> None:
    """UserError when a target is one of the inputs."""
    originals = {picture.path.resolve() for picture in inputs.pictures if not picture.address}
    originals |= {Path(clip.source).resolve() for clip in inputs.clips if not video.is_stream(clip.source)}
    for target in targets:
        if target.resolve() in originals:
            raise UserError(f"the drawn result would replace {target}; choose another --out")
