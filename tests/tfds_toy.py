"""A dataset of TensorFlow Datasets, prepared as array_record, with the classes of the toy detector."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from toy_artefact import NAMES

NAME = "tfds:toy_shapes"
COUNTS = {"train": 3, "validation": 2}


def prepare(root: Path) -> None:
    """Write the dataset."""
    import tensorflow_datasets as tfds

    features: Any = tfds.features

    class ToyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            box = {"bbox": features.BBoxFeature(), "label": features.ClassLabel(names=list(NAMES))}
            parts = {"image": features.Image(encoding_format="png"), "objects": features.Sequence(box)}
            return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(parts))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in COUNTS.items()}

        def _generate_examples(self, count):
            for i in range(count):
                noise = np.random.default_rng((count, i)).integers(0, 256, (40, 50 + i, 3), np.uint8)
                file = io.BytesIO()
                Image.fromarray(noise).save(file, "PNG")
                file.seek(0)
                box = features.BBox(ymin=0.1, xmin=0.2, ymax=0.5, xmax=0.6)
                yield i, {"image": file, "objects": [{"bbox": box, "label": NAMES[i % 3]}]}

    ToyBuilder.name = NAME.partition(":")[2]
    ToyBuilder(data_dir=root).download_and_prepare(file_format="array_record")


def use(root: Path, monkeypatch: Any) -> str:
    """Make it the dataset that is found; its name."""
    import tensorflow_datasets as tfds

    from dfine_jax.data.read import tfds as ours

    monkeypatch.setenv("DFINE_CACHE", str(root / "cache"))
    builder = tfds.builder
    monkeypatch.setattr(tfds, "builder", lambda name: builder(name, data_dir=root))
    ours._builder.cache_clear()
    ours._open.cache_clear()
    return NAME
