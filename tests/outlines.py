"""Outlines of the objects of a dataset, as its annotation file has them."""

from dfine_jax.data.read.coco import read_segmentations
from dfine_jax.data.read.outlines import parse_segmentation


def outlines_of(dataset):
    """Of every object in order; None where there is none."""
    found = {number: parse_segmentation(value) for number, value in read_segmentations(dataset).items()}
    return [found.get(int(i)) for record in dataset.records for i in record.annotation_ids]
