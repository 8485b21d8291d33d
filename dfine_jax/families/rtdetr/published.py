"""Published weights: detectors by name, and backbones trained on ImageNet. All are under the Apache licence 2.0."""

from __future__ import annotations

from dfine_jax.families.dfine.published import BACKBONES as HGNETS
from dfine_jax.families.family import Published

LICENCE = "Apache-2.0"
_RELEASES = "https://github.com/lyuwenyu/storage/releases/download"


def _file(release: str, file: str) -> Published:
    return Published(f"{_RELEASES}/{release}/{file}", licence=LICENCE)


DETECTORS: dict[str, Published] = {
    "rtdetrv2-r18-coco": _file("v0.2", "rtdetrv2_r18vd_120e_coco_rerun_48.1.pth"),
    "rtdetrv2-r34-coco": _file("v0.1", "rtdetrv2_r34vd_120e_coco_ema.pth"),
    "rtdetrv2-r50m-coco": _file("v0.1", "rtdetrv2_r50vd_m_7x_coco_ema.pth"),
    "rtdetrv2-r50-coco": _file("v0.1", "rtdetrv2_r50vd_6x_coco_ema.pth"),
    "rtdetrv2-r101-coco": _file("v0.1", "rtdetrv2_r101vd_6x_coco_from_paddle.pth"),
    "rtdetrv2-r18-discrete-coco": _file("v0.1", "rtdetrv2_r18vd_dsp_3x_coco.pth"),
    "rtdetrv2-r34-discrete-coco": _file("v0.1", "rrtdetrv2_r34vd_dsp_1x_coco.pth"),  # so it is spelt
    "rtdetrv2-r50m-discrete-coco": _file("v0.1", "rtdetrv2_r50vd_m_dsp_3x_coco.pth"),
    "rtdetrv2-r50-discrete-coco": _file("v0.1", "rtdetrv2_r50vd_dsp_1x_coco.pth"),
}
BACKBONES: dict[str, Published] = {
    "ResNet-vd-R18": _file("v0.1", "ResNet18_vd_pretrained_from_paddle.pth"),
    "ResNet-vd-R34": _file("v0.1", "ResNet34_vd_pretrained_from_paddle.pth"),
    "ResNet-vd-R50": _file("v0.1", "ResNet50_vd_ssld_v2_pretrained_from_paddle.pth"),
    "ResNet-vd-R101": _file("v0.1", "ResNet101_vd_ssld_pretrained_from_paddle.pth"),
    **{name: HGNETS[name] for name in ("HGNetv2-B4", "HGNetv2-B5", "HGNetv2-B6")},
}
