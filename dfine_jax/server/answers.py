"""Detections as the body of an answer."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfine_jax.prediction import result_forms
from dfine_jax.prediction.inputs import distinct
from dfine_jax.prediction.result import DetectionResult
from dfine_jax.server.options import Options

MEDIA_TYPES = {"json": "application/json", "coco": "application/json", "png": "image/png", "jpeg": "image/jpeg"}


def plain(result: DetectionResult, options: Options) -> dict[str, Any]:
    """``size`` as (width, height) and ``objects``, best first; boxes and outlines in pixels of the upright picture.

    Each object has label, name, category_id, score and box (x1, y1, x2, y2); of models that segment ``polygons``, the
    outlines of all parts and holes, to be filled by the even-odd rule, or ``segmentation``, COCO's run lengths.
    """
    runs = result.object_masks is not None and options.masks == "rle"
    objects = (result if runs else dataclasses.replace(result, object_masks=None)).to_dict()["objects"]
    if result.object_masks is not None and options.masks == "polygons":
        for i, entry in enumerate(objects):
            entry["polygons"] = result_forms.rings(result, i)
    return {"size": list(result.size_px), "objects": objects}


def coco(result: DetectionResult, options: Options, image_id: int | str) -> list[dict[str, Any]]:
    """Entries of a COCO results file; masks are run lengths, unless none are asked for."""
    return (dataclasses.replace(result, object_masks=None) if options.masks == "none" else result).to_coco(image_id)


def image_ids(names: Sequence[str]) -> list[int | str]:
    """An id for each picture of a request: its name, those that repeat with a number; its place where it has none."""
    shown = distinct(names, [Path(name) for name in names])
    return [id if name else place for place, (name, id) in enumerate(zip(names, shown, strict=True))]


def drawn(result: DetectionResult, options: Options) -> bytes:
    """The picture with boxes, masks and names, as a file."""
    shown = dataclasses.replace(result, object_masks=None) if options.masks == "none" else result
    with io.BytesIO() as stream:
        shown.draw().save(stream, options.form.upper(), **({"quality": 92} if options.form == "jpeg" else {}))
        return stream.getvalue()
