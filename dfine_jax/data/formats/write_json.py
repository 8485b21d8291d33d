"""Writers of COCO JSON, LabelMe and VIA."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dfine_jax.data.edit.items import Item
from dfine_jax.data.formats.placing import write_inside
from dfine_jax.data.formats.turning import backwards, decode_mask, turned, upright_orientation
from dfine_jax.data.formats.write import Shape, Target, note_unused
from dfine_jax.data.picture.images import image_size

COCO_FILE = "_annotations.coco.json"


def write_coco(target: Target) -> None:
    """``SPLIT/_annotations.coco.json`` beside the pictures, in stored pixels, with ids and fields as they were."""
    number = 0
    for split, items in target.items.splits.items():
        folder = target.place(split)
        images, annotations = [], []
        for position, item in enumerate(items, 1):
            width, height = image_size(item.path)
            name = target.placement.put(split, item.path, folder)
            images.append({**item.entry, "id": position, "file_name": name, "width": width, "height": height})
            for annotation in stored_annotations(item):
                number += 1
                annotations.append({**annotation, "id": number, "image_id": position})
        content = {"images": images, "annotations": annotations, "categories": target.items.categories}
        write_inside(folder / COCO_FILE, json.dumps(content))


def stored_annotations(item: Item) -> list[dict[str, Any]]:
    """Annotations in the pixels as stored, to which COCO's boxes refer."""
    orientation = backwards(upright_orientation(item.path))
    return [turned(annotation, item.size_px, orientation) for annotation in item.annotations]


def write_labelme(target: Target) -> None:
    """A JSON file for each picture; objects of several parts share a group_id."""
    note_unused(target)
    for split, items in target.items.splits.items():
        folder = target.place(split)
        for item in items:
            placed = target.placement.put(split, item.path, folder)
            file = (folder / target.placement.name(split, item.path)).with_suffix(".json")
            depth = len(file.relative_to(folder).parts) - 1
            named = "../" * depth + placed if target.placement.mode == "refer" else Path(placed).name
            shapes = []
            for group, shape in enumerate(target.shapes(item, parts=True, masks=True), 1):
                shapes += _labelme_shapes(shape, group)
            across, down = item.size_px
            content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": named, "imageData": None}
            content |= {"imageHeight": down, "imageWidth": across}
            write_inside(file, json.dumps(content, ensure_ascii=False, indent=2))


def _labelme_shapes(shape: Shape, group: int) -> list[dict[str, Any]]:
    common = {"label": shape.name, "group_id": None, "description": "", "flags": {}, "mask": None}
    x0, y0, x1, y1 = shape.xyxy_px
    if shape.polygons_px:
        group_id = group if len(shape.polygons_px) > 1 else None
        pairs = [[list(pair) for pair in zip(p[::2], p[1::2], strict=True)] for p in shape.polygons_px]
        return [{**common, "group_id": group_id, "shape_type": "polygon", "points": points} for points in pairs]
    if shape.run_lengths is not None:
        bitmap = decode_mask(shape.run_lengths)
        rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
        part = bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        stream = io.BytesIO()
        Image.fromarray(part * np.uint8(255)).save(stream, "PNG")
        corners = [[int(columns[0]), int(rows[0])], [int(columns[-1]), int(rows[-1])]]
        mask = base64.b64encode(stream.getvalue()).decode()
        return [{**common, "shape_type": "mask", "points": corners, "mask": mask}]
    return [{**common, "shape_type": "rectangle", "points": [[x0, y0], [x1, y1]]}]


def write_via(target: Target) -> None:
    """``via_region_data.json`` of each split; the class is the attribute ``class``."""
    note_unused(target)
    for split, items in target.items.splits.items():
        folder = target.place(split)
        content: dict[str, Any] = {}
        for item in items:
            name = target.placement.put(split, item.path, folder)
            regions = []
            for shape in target.shapes(item):
                regions.append({"shape_attributes": _via_shape(shape), "region_attributes": {"class": shape.name}})
            size = item.path.stat().st_size
            content[f"{name}{size}"] = {"filename": name, "size": size, "regions": regions, "file_attributes": {}}
        write_inside(folder / "via_region_data.json", json.dumps(content, ensure_ascii=False))


def _via_shape(shape: Shape) -> dict[str, Any]:
    if shape.polygons_px:
        points = shape.polygons_px[0]
        return {"name": "polygon", "all_points_x": points[::2], "all_points_y": points[1::2]}
    x0, y0, x1, y1 = shape.xyxy_px
    return {"name": "rect", "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
