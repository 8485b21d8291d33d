"""Datasets of TensorFlow Datasets through its random-access data sources, without TensorFlow.

Needs the extra ``tfds`` and a dataset prepared as ``array_record``. The annotations are read once and kept as COCO JSON
in the cache; pictures are read from the records when they are needed.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from typing import Any

from PIL import Image
from tqdm import tqdm

from dfine_jax.data.read.layout import MissingSplitError
from dfine_jax.errors import UserError
from dfine_jax.system.installed import pip_install

PREFIX = "tfds:"
_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid", "test"), "test": ("test",)}


@dataclasses.dataclass(frozen=True)
class TfdsPicture:
    """One encoded picture (dataset.Stored); the data source is opened once in each process."""

    name: str
    split: str
    index: int

    def read(self) -> bytes:
        """The encoded picture."""
        return _open(self.name, self.split)[self.index]["image"]


def find_split(name: str, split: str) -> str:
    """The dataset's own name of a split.

    Raises:
      UserError: the package is missing, the dataset is unknown or not prepared, or has no such split.
    """
    present = list(_builder(name).info.splits)
    found = next((candidate for candidate in _SPLITS[split] if candidate in present), None)
    if found is None:
        raise MissingSplitError(f"{PREFIX}{name} has no {split} split, only {', '.join(present) or 'none'}")
    return found


def identity(name: str, split: str) -> str:
    """What the annotations depend on: version, place and number of examples."""
    builder = _builder(name)
    return f"{builder.info.full_name} {builder.data_path} {split} {builder.info.splits[split].num_examples}"


def pictures(name: str, split: str) -> list[TfdsPicture]:
    """All pictures of a split in the order of ``read_tfds``."""
    return [TfdsPicture(name, split, index) for index in range(_builder(name).info.splits[split].num_examples)]


def read_tfds(name: str, split: str) -> dict[str, Any]:
    """COCO content of a split: one pass over its records.

    Category ids are the labels. Crowd regions and VOC's difficult objects become ``iscrowd``: not trained on, ignored
    when evaluating.

    Raises:
      UserError: as ``find_split``, or the dataset has no boxes with labels.
    """
    source = _open(name, split)
    features = _builder(name).info.features
    if features is None or "objects" not in features or not {"bbox", "label"} <= set(features["objects"].keys()):
        raise UserError(f"{PREFIX}{name} is no detection dataset: it needs 'objects' with 'bbox' and 'label'")
    names = features["objects"]["label"].names
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in tqdm(range(len(source)), desc=f"{PREFIX}{name} {split}", unit="image", disable=None):
        example = source[number]
        with Image.open(io.BytesIO(example["image"])) as picture:
            width, height = picture.size
        file_name = example.get("image/filename", f"{number:08d}".encode())
        image_id = int(example["image/id"]) if "image/id" in example else number + 1
        images.append({"id": image_id, "file_name": _text(file_name), "width": width, "height": height})
        for entry in _entries(example["objects"]):
            y0, x0, y1, x1 = (float(value) for value in entry["bbox"])
            bbox = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(entry["label"]),
                    "bbox": bbox,
                    "area": float(entry.get("area", bbox[2] * bbox[3])),
                    "iscrowd": int(bool(entry.get("is_crowd", entry.get("is_difficult", False)))),
                }
            )
    categories = [{"id": number, "name": class_name} for number, class_name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _entries(objects: dict[str, Any]) -> list[dict[str, Any]]:
    """A sequence of features comes as one list per feature."""
    return [
        {name: values[i] for name, values in objects.items() if len(values) == len(objects["label"])}
        for i in range(len(objects["label"]))
    ]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@functools.cache
def _builder(name: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(f"{PREFIX}{name} needs the extra tfds ({error}); {pip_install('tfds')}") from None
    try:
        builder = tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(f"{PREFIX}{name} is unknown to tensorflow_datasets ({str(error).splitlines()[0]})") from None
    if not builder.info.splits:
        raise UserError(
            f'{PREFIX}{name} is not prepared in {builder.data_path}; prepare it once with python -c "import '
            f"tensorflow_datasets as t; t.builder('{name}').download_and_prepare(file_format='array_record')\", "
            "or set TFDS_DATA_DIR to where it is"
        )
    return builder


@functools.cache
def _open(name: str, split: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return _builder(name).as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError:
        raise UserError(
            f"{PREFIX}{name} is prepared in a format without random access; prepare it with file_format='array_record'"
        ) from None
