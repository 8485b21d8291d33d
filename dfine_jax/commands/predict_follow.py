"""Options of ``dfine predict`` that follow and count objects."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dfine_jax.commands.early import require_json_name
from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.prediction.following import FollowPlan

_TRACKERS = ("bytetrack", "sort", "ocsort", "botsort", "cbiou")  # of ``tracking``, which loads more than --help needs


def add_tracking(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    tracking = parser.add_argument_group("tracking, of videos and of folders of frames")
    tracking.add_argument(
        "--track", metavar="TRACKER", nargs="?", const="bytetrack", type=_tracker,
        help="follow objects, each with a number: bytetrack (default), sort, ocsort, botsort, cbiou",
    )  # fmt: skip
    tracking.add_argument(
        "--count-line", metavar="[NAME=]X,Y,X,Y", action="append", default=[],
        help="count objects that cross a line, in pixels or in shares of the picture (0 to 1); in is to the left of "
        "one who walks from the first point to the second",
    )  # fmt: skip
    tracking.add_argument(
        "--count-zone", metavar="[NAME=]X,Y,X,Y,X,Y,...", action="append", default=[],
        help="count objects that go into and out of a polygon",
    )  # fmt: skip
    tracking.add_argument(
        "--counts", metavar="FILE", type=Path,
        help="counts by class and every crossing, as JSON; with the ending .csv a table of the counts",
    )  # fmt: skip


def _tracker(name: str) -> str:
    """A name of ``tracking.TRACKERS``; checked while arguments are read, since what follows may be meant for SOURCE."""
    if name not in _TRACKERS:
        raise UserError(
            f"--track {name}: one of {', '.join(_TRACKERS)}; without a name write --track after MODEL and SOURCE"
        )
    return name


def follow_plan(options: argparse.Namespace) -> FollowPlan | None:
    """What the options ask for; None where nothing is followed. Lines, zones and counts ask for tracking too.

    Raises:
      UserError: a line or zone cannot be, or the package trackers is absent.
    """
    from dfine_jax.prediction import counting
    from dfine_jax.prediction.following import FollowPlan
    from dfine_jax.prediction.tracking import require_trackers
    from dfine_jax.system.files import is_device, require_writable

    if options.track is None and not (options.count_line or options.count_zone or options.counts):
        return None
    tracker = options.track or "bytetrack"
    shapes = [counting.line(text, number) for number, text in enumerate(options.count_line, start=1)]
    shapes += [counting.zone(text, number) for number, text in enumerate(options.count_zone, start=1)]
    names = [shape.name for shape in shapes]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two lines or zones are named {repeated[0]}; give each a name of its own")
    if options.counts is not None:
        if options.counts.is_dir():
            raise UserError(f"--counts {options.counts} is a folder; give a file, counts.json or counts.csv")
        if options.counts.suffix.lower() != ".csv":
            require_json_name("--counts", options.counts, ".csv for a table")
        if not is_device(options.counts):
            require_writable(options.counts.absolute().parent)
    require_trackers()
    return FollowPlan(tracker, tuple(shapes))
