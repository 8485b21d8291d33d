"""Writer of Label Studio: tasks, and the labelling interface that they are for."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from dfine_jax.data.edit.items import WHOLE, Item
from dfine_jax.data.formats.placing import write_inside
from dfine_jax.data.formats.write import Shape, Target, note_unused

CONFIG = "label_config.xml"
_SERVED = "/data/local-files/?d="  # what Label Studio shows from its LOCAL_FILES_DOCUMENT_ROOT
_BOXES, _POLYGONS = "RectangleLabels", "PolygonLabels"


def write_labelstudio(target: Target) -> None:
    """``tasks.json`` of each split, and ``label_config.xml``, which is to be pasted as the project's interface.

    Pictures are in a folder ``images`` and named as Label Studio serves them, from the new folder as document root: of
    that it takes only folders below as a local storage. A task has an annotation, or of detections a prediction, which
    is empty where nothing was found: what a detector says is to be confirmed.
    """
    if not target.items.detected:
        note_unused(target)
    shapes = {
        split: [target.shapes(item) for item in items] for split, items in target.items.splits.items()
    }  # before anything is written: the controls are those of all of them
    controls = _controls(shape for own in shapes.values() for several in own for shape in several)
    for split, items in target.items.splits.items():
        folder, below = target.place(split), "" if split == WHOLE else f"{split}/"
        tasks = []
        for position, (item, several) in enumerate(zip(items, shapes[split], strict=True), 1):
            name = target.placement.put(split, item.path, folder / "images")
            results = [_result(shape, item, i, controls) for i, shape in enumerate(several)]
            task: dict[str, Any] = {"id": position, "data": {"image": _SERVED + quote(f"{below}images/{name}")}}
            if target.items.detected:
                task |= {"annotations": [], "predictions": [{"model_version": "dfine_jax", "result": results}]}
            else:
                task |= {"annotations": [{"result": results}]}
            tasks.append(task)
        write_inside(
            folder / ("tasks.json" if split != WHOLE else "labelstudio.json"), json.dumps(tasks, ensure_ascii=False)
        )
    write_inside(target.folder / CONFIG, _interface(target, controls))


def _controls(shapes: Iterable[Shape]) -> dict[str, str]:
    """Names of the controls that the shapes need: of one kind it is ``label``, as in Label Studio's own templates."""
    kinds = {_POLYGONS if shape.polygons_px else _BOXES for shape in shapes}
    names = {_BOXES: "label", _POLYGONS: "polygon" if _BOXES in kinds else "label"}  # no two may be called alike
    return {kind: names[kind] for kind in (_BOXES, _POLYGONS) if kind in (kinds or {_BOXES})}


def _interface(target: Target, controls: dict[str, str]) -> str:
    root = ElementTree.Element("View")
    ElementTree.SubElement(root, "Image", {"name": "image", "value": "$image"})
    for kind, name in controls.items():
        control = ElementTree.SubElement(root, kind, {"name": name, "toName": "image"})
        for number in sorted(target.names):
            ElementTree.SubElement(control, "Label", {"value": target.names[number]})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _result(shape: Shape, item: Item, position: int, controls: dict[str, str]) -> dict[str, Any]:
    across, down = item.size_px
    kind = _POLYGONS if shape.polygons_px else _BOXES
    common = {"id": f"r{position}", "from_name": controls[kind], "to_name": "image", "type": kind.lower()}
    common |= {"original_width": across, "original_height": down, "image_rotation": 0}
    common |= {} if shape.score is None else {"score": shape.score}
    if shape.polygons_px:
        points = shape.polygons_px[0]
        pairs = zip(points[::2], points[1::2], strict=True)
        value: dict[str, Any] = {"points": [[x / across * 100, y / down * 100] for x, y in pairs], "closed": True}
    else:
        x0, y0, x1, y1 = shape.xyxy_px
        value = {"x": x0 / across * 100, "y": y0 / down * 100, "rotation": 0}
        value |= {"width": (x1 - x0) / across * 100, "height": (y1 - y0) / down * 100}
    return {**common, "value": {**value, kind.lower(): [shape.name]}}
