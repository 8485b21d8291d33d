"""Writers of YOLO, Pascal VOC and CVAT for images."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import yaml

from dfine_jax.data.edit.items import WHOLE, Item
from dfine_jax.data.formats.placing import write_inside
from dfine_jax.data.formats.turning import decode_mask
from dfine_jax.data.formats.write import Shape, Target, note_unused
from dfine_jax.data.read.yolo_label_files import label_candidates

_BEYOND_PX = 0.5  # rounding of the annotation tool; not worth a note


def write_yolo(target: Target) -> None:
    """``data.yaml``, ``images/`` and ``labels/``; classes are numbered from 0 in the order of their ids."""
    numbers = {number: position for position, number in enumerate(sorted(target.names))}
    for split, items in target.items.splits.items():
        below = "" if split == WHOLE else split
        for item in items:
            name = target.placement.put(split, item.path, target.folder / "images" / below)
            lines = [_yolo_line(shape, numbers, item, target) for shape in target.shapes(item)]
            file = label_candidates(target.folder / "images" / below / name)[0]  # by the last folder "images", as read
            write_inside(file, "".join(f"{line}\n" for line in lines if line))
    entries = {"train" if split == WHOLE else split: _yolo_folder(split) for split in target.items.splits}
    names = {numbers[number]: target.names[number] for number in sorted(target.names)}
    text = yaml.safe_dump({**entries, "nc": len(names), "names": names}, allow_unicode=True, sort_keys=False)
    write_inside(target.folder / "data.yaml", text)


def _yolo_folder(split: str) -> str:
    return "images" if split == WHOLE else f"images/{split}"


def _yolo_line(shape: Shape, numbers: dict[int, int], item: Item, target: Target) -> str:
    across, down = item.size_px
    where = f"{item.path}, {shape.name}"
    x0, y0, x1, y1 = shape.xyxy_px
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, across), min(y1, down)
    if right <= left or bottom <= top:
        target.notes.add("boxes without area in the picture are left out", where)
        return ""
    if max(left - x0, top - y0, x1 - right, y1 - bottom) > _BEYOND_PX:
        target.notes.add("boxes reach beyond the picture; they are cut", where)
    if shape.polygons_px:
        sides = (across, down)
        points = [min(max(value / sides[i % 2], 0), 1) for i, value in enumerate(shape.polygons_px[0])]
        return " ".join([str(numbers[shape.category_id]), *(f"{value:.9g}" for value in points)])
    values = ((left + right) / 2 / across, (top + bottom) / 2 / down, (right - left) / across, (bottom - top) / down)
    return " ".join([str(numbers[shape.category_id]), *(f"{value:.9g}" for value in values)])


def write_voc(target: Target) -> None:
    """``Annotations/``, ``JPEGImages/`` and, of the splits, ``ImageSets/Main/``; crowds are marked difficult."""
    note_unused(target)
    for split, items in target.items.splits.items():
        stems = []
        for item in items:
            name = target.placement.put(split, item.path, target.folder / "JPEGImages")
            stems.append(Path(name).stem)
            root = _voc_picture(name, item)
            for shape in target.shapes(item, crowds=True):
                if shape.polygons_px:
                    target.notes.add("polygons cannot be held; their boxes are written", f"{item.path}, {shape.name}")
                entry = ElementTree.SubElement(root, "object")
                fields = {
                    "name": shape.name,
                    "pose": "Unspecified",
                    "truncated": "0",
                    "difficult": str(int(shape.crowd)),
                }
                for key, value in fields.items():
                    ElementTree.SubElement(entry, key).text = value
                edges = ElementTree.SubElement(entry, "bndbox")
                for key, value in zip(("xmin", "ymin", "xmax", "ymax"), shape.xyxy_px, strict=True):
                    ElementTree.SubElement(edges, key).text = _number(value)
            _write_xml(target.folder / "Annotations" / f"{Path(name).stem}.xml", root)
        if split != WHOLE:
            lines = "".join(f"{stem}\n" for stem in stems)
            write_inside(target.folder / "ImageSets" / "Main" / f"{split}.txt", lines)


def _voc_picture(name: str, item: Item) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "folder").text = "JPEGImages"
    ElementTree.SubElement(root, "filename").text = name
    ElementTree.SubElement(ElementTree.SubElement(root, "source"), "database").text = "Unknown"
    size = ElementTree.SubElement(root, "size")
    for key, value in zip(("width", "height", "depth"), (*item.size_px, 3), strict=True):
        ElementTree.SubElement(size, key).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "0"
    return root


def write_cvat(target: Target) -> None:
    """``annotations.xml`` of each split, version 1.1, beside its pictures."""
    for split, items in target.items.splits.items():
        folder = target.place(split)
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
        for number in sorted(target.names):
            label = ElementTree.SubElement(labels, "label")
            ElementTree.SubElement(label, "name").text = target.names[number]
            ElementTree.SubElement(label, "attributes")
        for position, item in enumerate(items):
            across, down = item.size_px
            entry = ElementTree.SubElement(root, "image", {"id": str(position)})
            entry.attrib |= {
                "name": target.placement.put(split, item.path, folder),
                "width": str(across),
                "height": str(down),
            }
            for shape in target.shapes(item, masks=True):
                _cvat_shape(entry, shape)
        _write_xml(folder / "annotations.xml", root)


def _cvat_shape(entry: ElementTree.Element, shape: Shape) -> None:
    source = "file" if shape.score is None else "auto"
    common = {"label": shape.name, "source": source, "occluded": "0", "z_order": "0"}
    if shape.polygons_px:
        points = shape.polygons_px[0]
        pairs = zip(points[::2], points[1::2], strict=True)
        text = ";".join(f"{_number(x)},{_number(y)}" for x, y in pairs)
        ElementTree.SubElement(entry, "polygon", {**common, "points": text})
    elif shape.run_lengths is not None:
        ElementTree.SubElement(entry, "mask", {**common, **_cvat_mask(shape.run_lengths)})
    else:
        edges = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(_number, shape.xyxy_px), strict=True))
        ElementTree.SubElement(entry, "box", {**common, **edges})


def _cvat_mask(run_lengths: dict) -> dict[str, str]:
    import numpy as np

    bitmap = decode_mask(run_lengths)
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    part = bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    flat = part.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes.tolist(), len(flat)]).tolist()
    runs = [0, *runs] if flat[0] else runs  # the first run is outside
    sides = {"left": columns[0], "top": rows[0], "width": part.shape[1], "height": part.shape[0]}
    return {"rle": ", ".join(map(str, runs)), **{key: str(int(value)) for key, value in sides.items()}}


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".")


def _write_xml(file: Path, root: ElementTree.Element) -> None:
    ElementTree.indent(root)
    write_inside(file, ElementTree.tostring(root, encoding="unicode") + "\n")
