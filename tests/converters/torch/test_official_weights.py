"""The official weights give the outputs published for them. Needs the internet: ``pytest -m internet``.

The expected numbers are those of the Hugging Face port's integration tests: logits of queries 0..2, classes 0..2, and
centre and width of their boxes, for COCO val2017 image 39769. DFINE_COCO_39769 may name a local copy of the image.
"""

import os
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from PIL import Image

from dfine_jax.converters.torch.importer import import_weights
from dfine_jax.errors import UserError
from dfine_jax.families import published
from dfine_jax.families.dfine.model import DFine
from dfine_jax.weights import hub

pytestmark = pytest.mark.internet
IMAGE_URL = "http://images.cocodataset.org/val2017/000000039769.jpg"

EXPECTED = {
    "dfine-n-coco": (
        [[-3.7828, -5.0889, -4.8341], [-5.3047, -6.2802, -2.9276], [-4.4979, -5.2670, -6.2380]],
        [[0.73335, 0.42706, 0.39425], [0.16802, 0.19886, 0.21031], [0.25370, 0.55344, 0.48497]],
    ),
    "dfine-s-coco": (
        [[-3.8098, -4.7725, -5.9945], [-5.2975, -9.4991, -6.1654], [-5.3503, -3.9530, -6.3630]],
        [[0.76777, 0.41479, 0.46441], [0.16912, 0.19869, 0.21238], [0.25817, 0.54818, 0.47512]],
    ),
    "dfine-m-coco": (
        [[-4.5187, -4.7171, -4.1177], [-4.5140, -4.9377, -3.8291], [-4.8300, -6.9317, -3.1740]],
        [[0.25851, 0.54900, 0.47576], [0.76968, 0.41412, 0.45988], [0.16866, 0.19921, 0.21208]],
    ),
    "dfine-l-coco": (
        [[-4.0688, -5.1700, -4.3392], [-3.9462, -5.0280, -4.0161], [-4.2183, -6.1963, -5.1752]],
        [[0.25649, 0.54899, 0.47489], [0.76935, 0.41390, 0.45980], [0.16876, 0.19875, 0.21197]],
    ),
    "dfine-x-coco": (
        [[-4.8447, -4.7293, -4.5971], [-4.5543, -4.6172, -4.6279], [-4.3934, -4.6064, -4.1400]],
        [[0.25652, 0.54776, 0.47645], [0.76900, 0.41424, 0.46149], [0.16881, 0.19924, 0.21118]],
    ),
    "dfine-l-obj2coco": (
        [[-3.6098, -6.6336, -5.1227], [-3.6827, -6.9178, -5.4146], [-4.4917, -6.0823, -4.5718]],
        [[0.76971, 0.41369, 0.45880], [0.25737, 0.54856, 0.47715], [0.16895, 0.19871, 0.21156]],
    ),
    "dfine-x-obj2coco": (
        [[-4.2304, -6.6295, -4.8340], [-4.0854, -6.3281, -4.6955], [-3.8968, -6.3368, -4.6705]],
        [[0.25707, 0.54842, 0.47624], [0.76967, 0.41273, 0.45971], [0.16882, 0.19918, 0.21121]],
    ),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = os.environ.get("DFINE_COCO_39769")
    if path is None:
        path = tmp_path_factory.mktemp("coco") / "000000039769.jpg"
        try:
            with urllib.request.urlopen(IMAGE_URL, timeout=30) as answer:
                path.write_bytes(answer.read())
        except (urllib.error.URLError, TimeoutError) as error:
            pytest.skip(f"no connection to {IMAGE_URL}: {error}")
    picture = Image.open(path).convert("RGB").resize((640, 640), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.float32)[None] / 255


def fetched(name):
    try:
        return hub.fetch(name)
    except UserError as error:
        if "without a connection" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("name", EXPECTED)
def test_published_outputs(name, image):
    variables, metadata = import_weights(fetched(name))
    model = DFine(metadata.config.model)
    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, image)
    logits, boxes = EXPECTED[name]
    np.testing.assert_allclose(np.asarray(out.logits)[0, :3, :3], logits, atol=1e-3)
    np.testing.assert_allclose(np.asarray(out.boxes_cxcywh)[0, :3, :3], boxes, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(published()) - set(EXPECTED)))
def test_other_published_files_convert(name):
    _, metadata = import_weights(fetched(name))
    config = metadata.config.model
    assert config.variant == name.split("-")[1]
    assert config.num_classes == (366 if "obj365" in name else 80)
