"""Released weights: COCO, by size. The MD5 sums are those of package rfdetr 1.11.2 (``rfdetr.assets.model_weights``).

The weights of XLarge and 2XLarge are not among them: they have another licence (``variants.PLATFORM_LICENCE``).
"""

from __future__ import annotations

from dfine_jax.families.family import Published

_URL = "https://storage.googleapis.com/rfdetr"
_LICENCE = "Apache-2.0"


def _file(path: str, md5: str, name: str = "", variant: str = "") -> Published:
    return Published(f"{_URL}/{path}", licence=_LICENCE, md5=md5, cached=name, variant=variant)


DETECTORS: dict[str, Published] = {
    **{
        f"rfdetr-{size}-coco": _file(f"{size}_coco/checkpoint_best_regular.pth", md5, f"rf-detr-{size}.pth")
        for size, md5 in (
            ("nano", "fb6504cce7fbdc783f7a46991f07639f"),
            ("small", "fb37061c1af7bace359c91b723a8d5c1"),
            ("medium", "7223f764a87b863f02eb8d52bf0ce2ee"),
        )
    },
    "rfdetr-large-coco": _file("rf-detr-large-2026.pth", "5cb72153541cbcb9aa6efa26222acc75"),
    "rfdetr-base-coco": _file("rf-detr-base-coco.pth", "b4d3ce46099eaed50626ede388caf979"),
    "rfdetr-base-2-coco": _file("rf-detr-base-2.pth", "462f4d9df407ddc1812f42614040e913"),
    "rfdetr-seg-preview-coco": _file("rf-detr-seg-preview.pt", "e35820c28fb86080558123e47a5e49ca", variant="seg-small"),
    "rfdetr-seg-nano-coco": _file("rf-detr-seg-n-ft.pth", "9995497791d0ff1664a1d9ddee9cfd20"),
    "rfdetr-seg-small-coco": _file("rf-detr-seg-s-ft.pth", "0a2a3006381d0c42853907e700eadd08"),
    "rfdetr-seg-medium-coco": _file("rf-detr-seg-m-ft.pth", "a49af1562c3719227ad43d0ca53b4c7a"),
    "rfdetr-seg-large-coco": _file("rf-detr-seg-l-ft.pth", "275f7b094909544ed2841c94a677d07e"),
    "rfdetr-seg-xlarge-coco": _file("rf-detr-seg-xl-ft.pth", "3693b35d0eea86ebb3e0444f4a611fba"),
    "rfdetr-seg-2xlarge-coco": _file("rf-detr-seg-2xl-ft.pth", "040bc3412af840fa8a47e0ff69b552ba"),
}
