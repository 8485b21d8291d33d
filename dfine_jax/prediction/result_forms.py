"""A result in other forms: drawn files, dictionaries, tables, label files, notebooks."""

from __future__ import annotations

import base64
import html as markup
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dfine_jax.data.picture.images import save_picture
from dfine_jax.errors import UserError
from dfine_jax.system.installed import require

if TYPE_CHECKING:
    from dfine_jax.prediction.result import DetectionResult

# How far written outlines may lie from the edges of pixels, so that they have fewer points: diagonals become lines.
_OUTLINE_PX, _OUTLINE_SHARE = 0.75, 1 / 2000  # at least, and of the longer side of the picture
_NOTEBOOK_PX = 960  # longer side of pictures in notebooks
_NOTEBOOK_ROWS = 12


def coco(result: DetectionResult, image_id: int | str | None) -> list[dict[str, Any]]:
    """As ``DetectionResult.to_coco``.

    Raises:
      UserError: no id is given and the picture has no name.
    """
    image_id = result.name if image_id is None else image_id
    if image_id == "":
        raise UserError("the picture has no file name that could be its id; give to_coco(image_id)")
    corners = result.boxes_xyxy_px.astype(float)
    bbox = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).round(2)
    rows = zip(result.category_ids, bbox.tolist(), result.scores.astype(float).round(5).tolist(), strict=True)
    entries = [{"image_id": image_id, "category_id": c, "bbox": b, "score": s} for c, b, s in rows]
    for i, entry in enumerate(entries if result.object_masks is not None else []):
        entry["segmentation"] = _run_lengths(result, i)
    return _numbered(entries, result)


def plain(result: DetectionResult) -> dict[str, Any]:
    """As ``DetectionResult.to_dict``."""
    objects = _rows(result, lambda box: {"box": box})
    for i, entry in enumerate(objects if result.object_masks is not None else []):
        entry["segmentation"] = _run_lengths(result, i)
    width, height = result.size_px
    objects = _numbered(objects, result)
    return {"image": result.name or None, "width": width, "height": height, "objects": objects}


def to_json(result: DetectionResult, options: Mapping[str, Any]) -> str:
    """As ``DetectionResult.to_json``."""
    return json.dumps(plain(result), **{"ensure_ascii": False, **options})


def to_pandas(result: DetectionResult) -> Any:
    """As ``DetectionResult.to_pandas``.

    Raises:
      UserError: pandas is absent.
    """
    corners = ("x0", "y0", "x1", "y1")
    columns = ["name", "category_id", "label", "score", *corners]
    rows = _rows(result, lambda box: dict(zip(corners, box, strict=True)))
    if result.track_ids is not None:
        columns.append("track_id")
        rows = [{**row, "track_id": number} for row, number in zip(rows, result.track_ids.tolist(), strict=True)]
    return require("pandas", "to_pandas()").DataFrame(rows, columns=columns)


def to_yolo(result: DetectionResult, scores: bool = False) -> str:
    """As ``DetectionResult.to_yolo``.

    A line has one polygon, so of an object in several parts it is the outline of the largest, holes filled; an object
    without a pixel has no line.
    """
    width, height = result.size_px
    lines = []
    for i, (label, box) in enumerate(zip(result.labels, result.boxes_xyxy_px.astype(float), strict=True)):
        if result.object_masks is None:
            x0, y0, x1, y1 = box.reshape(2, 2).clip(0, [width, height]).ravel().tolist()
            values = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
        else:
            outlines = result.object_masks.outlines(i, _tolerance_px(result))
            values = (outlines[0].outer / [width, height]).ravel().tolist() if outlines else []
        if values:
            values += [float(result.scores[i])] * scores
            lines.append(" ".join([str(label), *(f"{value:.6g}" for value in values)]))
    return "".join(f"{line}\n" for line in lines)


def rings(result: DetectionResult, i: int) -> list[list[float]]:
    """Outlines of all parts and holes of an object, x and y by turns, to be filled by the even-odd rule.

    Pixels of the picture, simplified by less than can be seen.
    """
    assert result.object_masks is not None
    outlines = result.object_masks.outlines(i, _tolerance_px(result))
    return [ring.ravel().round(1).tolist() for outline in outlines for ring in (outline.outer, *outline.holes)]


def to_supervision(result: DetectionResult) -> Any:
    """As ``DetectionResult.to_supervision``.

    Raises:
      UserError: supervision is absent.
    """
    return require("supervision", "to_supervision()").Detections(
        xyxy=result.boxes_xyxy_px,
        mask=result.masks,
        confidence=result.scores,
        class_id=result.labels.astype(int),
        tracker_id=result.track_ids,
        data={"class_name": np.array(result.names, dtype=str)},
    )


def save(result: DetectionResult, path: Path, options: Mapping[str, Any]) -> Path:
    """As ``DetectionResult.save``."""
    if path.is_dir():
        name = Path(result.name)
        kept = name.suffix.lower() in Image.registered_extensions()
        path = path / (name.name if kept else f"{name.stem or 'drawn'}.png")
    if path.suffix.lower() not in Image.registered_extensions():
        cures = {".json": "to_json()", ".txt": "to_yolo()", ".csv": "to_pandas().to_csv(path)"}
        cure = cures.get(path.suffix.lower(), "to_dict()")
        raise UserError(f"{path} does not end like a picture (.jpg, .png); for data there is {cure}")
    if result.source is not None and isinstance(result.source.value, (str, Path)):
        original = Path(result.source.value)
        if path.exists() and original.exists() and path.samefile(original):
            raise UserError(f"the drawn result would replace {path}; choose another path")
    jpeg = {"quality": 92} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    save_picture(result.draw(**options), path, **jpeg)
    return path


def png(result: DetectionResult) -> bytes | None:
    """The drawn picture for a notebook; None where there is none to draw in."""
    return _encoded(result, "PNG")


def html(result: DetectionResult) -> str:
    """The drawn picture and the best detections as a table, for a notebook."""
    drawn = _encoded(result, "JPEG")
    parts = []
    if drawn is not None:
        data = base64.b64encode(drawn).decode()
        parts.append(f'<img alt="detections" style="max-width:100%" src="data:image/jpeg;base64,{data}">')
    rows = "".join(
        f"<tr><td>{markup.escape(d.name)}</td><td>{d.score:.2f}</td>"
        f"<td>{', '.join(f'{v:.0f}' for v in d.box)}</td></tr>"
        for d in result[:_NOTEBOOK_ROWS]
    )
    if len(result) > _NOTEBOOK_ROWS:
        rows += f'<tr><td colspan="3">and {len(result) - _NOTEBOOK_ROWS} more</td></tr>'
    head = "<tr><th>class</th><th>score</th><th>box (x0, y0, x1, y1)</th></tr>"
    parts.append(f"<table>{head}{rows}</table>" if len(result) else "<p>nothing found</p>")
    return f"<div>{''.join(parts)}</div>"


def _encoded(result: DetectionResult, form: str) -> bytes | None:
    try:
        drawn = result.draw()
    except UserError:  # no picture is held, or it is gone: the table remains
        return None
    drawn.thumbnail((_NOTEBOOK_PX, _NOTEBOOK_PX))
    with io.BytesIO() as stream:
        drawn.save(stream, form)
        return stream.getvalue()


def _tolerance_px(result: DetectionResult) -> float:
    return max(_OUTLINE_PX, _OUTLINE_SHARE * max(result.size_px))


def _rows(result: DetectionResult, place: Any) -> list[dict[str, Any]]:
    boxes = result.boxes_xyxy_px.astype(float).round(2).tolist()
    scores = result.scores.astype(float).round(5).tolist()
    rows = zip(result.names, result.category_ids, result.labels.tolist(), scores, boxes, strict=True)
    return [
        {"name": name, "category_id": category, "label": label, "score": score, **place(box)}
        for name, category, label, score, box in rows
    ]


def _numbered(entries: list[dict[str, Any]], result: DetectionResult) -> list[dict[str, Any]]:
    """Entries of all detections, those of objects that are followed with their numbers."""
    if result.track_ids is None:
        return entries
    numbers = result.track_ids.tolist()
    return [{**e, "track_id": n} if n >= 0 else e for e, n in zip(entries, numbers, strict=True)]


def _run_lengths(result: DetectionResult, i: int) -> dict[str, Any]:
    assert result.object_masks is not None
    encoded = result.object_masks.rle(i)
    return {**encoded, "counts": encoded["counts"].decode()}
