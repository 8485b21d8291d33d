"""Pictures that are frames of a video: those of one folder, in the order of their names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dfine_jax.data.picture.images import upright_size
from dfine_jax.errors import UserError
from dfine_jax.prediction.inputs import Inputs, Picture
from dfine_jax.system.search import natural
from dfine_jax.system.wording import counted


def in_frame_order(inputs: Inputs) -> Inputs:
    """The same with the pictures of each folder in the order of their names, ``frame_10`` after ``frame_9``.

    A note says what was taken for frames of one video.

    Raises:
      UserError: a picture alone in its folder, on a server, or of another size than those beside it: these are no
        frames of one video.
    """
    folders: dict[str, list[Picture]] = {}
    for picture in inputs.pictures:
        if picture.address:
            raise UserError(
                f"--track: {picture.place} is a single picture on a server; give a video or a folder of frames"
            )
        folders.setdefault(os.path.abspath(picture.path.parent), []).append(picture)
    for folder, frames in folders.items():
        frames.sort(key=lambda picture: natural(Path(picture.path.name)))
        if len(frames) == 1:
            raise UserError(
                f"--track follows objects through frames, and {frames[0].place} is the only picture of {folder}; give "
                "a video or a folder of frames"
            )
        _require_one_size(frames)
    notes = [
        f"--track: {counted(len(frames), 'picture')} of {folder} taken for frames of one video, {frames[0].path.name} "
        f"to {frames[-1].path.name}"
        for folder, frames in folders.items()
    ]
    return inputs._replace(
        pictures=[picture for frames in folders.values() for picture in frames], notes=inputs.notes + notes
    )


def _require_one_size(frames: Sequence[Picture]) -> None:
    first, first_size = frames[0], None
    for picture in frames:
        try:
            size = upright_size(picture.path)
        except UserError:  # told when it is its turn
            continue
        if first_size is None:
            first, first_size = picture, size
        if size != first_size:
            sizes = f"{first.place} is {first_size[0]}x{first_size[1]} and {picture.path.name} {size[0]}x{size[1]}"
            raise UserError(
                f"--track: {sizes}, so they are no frames of one video; give each video a folder of its own, "
                "or leave --track away"
            )
