"""Names that people bring from other libraries, answered with the name here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np

_OPTIONS = {  # of a call -> what it is called here
    "conf": "threshold", "confidence": "threshold", "score": "threshold", "score_threshold": "threshold",
    "conf_thres": "threshold", "thresh": "threshold", "class_names": "classes", "labels": "classes",
    "source": "the first argument", "img": "the first argument", "imgs": "the first argument",
    "image": "the first argument", "max_det": "num_top of Detector(...)", "topk": "num_top of Detector(...)",
    "batch": "batch_size of Detector(...)", "device": "device of Detector(...)", "weights": "the first argument",
    "model_path": "the first argument", "classes": "an option of its call, detector(image, classes=...)",
    "bgr": "an option of its call, detector(image, bgr=True)",
}  # fmt: skip
_NEEDLESS = {
    "imgsz": "the model knows its input size; export it with another --size",
    "size": "the model knows its input size; export it with another --size",
    "iou": "nothing is suppressed afterwards: the model answers with each object once",
    "nms": "nothing is suppressed afterwards: the model answers with each object once",
    "task": "the model knows what it was trained for",
    "half": "the precision is chosen when exporting: dfine export --precision fp16",
    "save": "call result.save(path)",
    "show": "call result.show()",
    "stream": "call detector.stream(...)",
    "verbose": "nothing is printed",
}


class Elsewhere:
    """An attribute that is not here: reading it is an AttributeError with the cure, and ``hasattr`` says False."""

    def __init__(self, cure: str) -> None:
        self._cure, self._name = cure, ""

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn the name."""
        self._name = name

    def __get__(self, instance: object, owner: type) -> NoReturn:
        """Tell where it is."""
        raise AttributeError(f"{owner.__name__} has no {self._name}; {self._cure}", name=self._name, obj=instance)


class MaskArray(np.ndarray):
    """Masks in the size of the picture, an array as any other, which knows what Ultralytics' masks have beside."""

    xy = Elsewhere("outlines in pixels are result.object_masks.polygons(i) of each object")
    xyn = Elsewhere("outlines in pixels are result.object_masks.polygons(i) of each object")

    @property
    def data(self) -> Any:
        """The plain array."""
        return self.view(np.ndarray)


def refuse_options(callee: str, given: Iterable[str], known: Iterable[str]) -> None:
    """TypeError for options that a call does not have, with the cure."""
    for name in given:
        cure = _NEEDLESS.get(name) or (f"here it is {_OPTIONS[name]}" if name in _OPTIONS else "")
        cure = cure or f"it has {', '.join(known)}"
        raise TypeError(f"{callee} got an unexpected keyword argument {name!r}; {cure}")


def joined(values: Any) -> list[str]:
    """Classes as ``class_filter.class_labels`` wants them, of one or several names or ids."""
    several = [values] if isinstance(values, (str, int)) else list(values)
    return [str(value) for value in several]
