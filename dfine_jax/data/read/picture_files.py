"""Pictures of a folder, and what was found beside them that cannot be used."""

from __future__ import annotations

from pathlib import Path

from dfine_jax.data.picture.images import EXTENSIONS, UNREADABLE_EXTENSIONS
from dfine_jax.data.read.notes import Notes
from dfine_jax.system.search import find_files


def pictures_below(folder: Path, notes: Notes) -> list[Path]:
    """Pictures below a folder, sorted, links followed; what is left out (hidden folders, unreadable kinds) is noted."""
    found = find_files(folder, EXTENSIONS + UNREADABLE_EXTENSIONS)
    if found.note():
        notes.add("folder searched without all of its contents", f"{folder}: {found.note()}")
    out = []
    for path in found.files:
        if path.suffix.lower() in UNREADABLE_EXTENSIONS:
            notes.add("pictures of kinds that cannot be read were left out; convert them to JPEG or PNG", str(path))
        else:
            out.append(path)
    return out
