"""Weights that have been released: D-FINE's, dfine-seg's with and without masks, and the backbones they start from."""

from __future__ import annotations

from dfine_jax.families.family import Published, Repository

_URL = "https://github.com/Peterande/storage/releases/download/dfinev1.0"
_SEG_URL = "https://huggingface.co/ArgoSA/D-FINE-seg/resolve/main"
_LICENCE = "Apache-2.0"
# Where a SHA-256 stands, several independent public projects that download the release and check it record the same
# one, with the same size: N (15,489,558 bytes), S (41,841,422) and M (79,108,938; also the identity of the file that
# the author keeps at huggingface.co/Peterande/D-FINE), and the backbone B0 (7,555,621). The release lists none.
_SHA256 = {
    "dfine_n_coco.pth": "41973938d2784d38a9836990d805b8392855ebf611aba55f0f7add90e110744c",
    "dfine_s_coco.pth": "48a6c8cc43eb57186843f752e2e8461ddd3326e0d3c575e71e6e960844683e89",
    "dfine_m_coco.pth": "b44a7586bf490858c7b8bce9e44bd025cb88724df9a07a8deb3ae1c12e608195",
    "PPHGNetV2_B0_stage1.pth": "70a372e8cbc59b34c5da2943261ecb633faf304a58e7e05461a27bd8d8b7f3d1",
}


def _published(file: str) -> Published:
    return Published(f"{_URL}/{file}", _SHA256.get(file), _LICENCE)


def _of_seg(file: str) -> Published:
    return Published(f"{_SEG_URL}/{file}", None, _LICENCE)


# Tensors alone, which do not say that they are dfine-seg's; of these without masks it has to be known.
SEG_DETECTORS: dict[str, Published] = {
    **{f"dfine-seg-det-{v}-coco": _of_seg(f"dfine_{v}_coco.pt") for v in "nsmlx"},
    **{f"dfine-seg-det-{v}-obj2coco": _of_seg(f"dfine_{v}_obj2coco.pt") for v in "smlx"},
}
DETECTORS: dict[str, Published] = {
    **{f"dfine-{v}-coco": _published(f"dfine_{v}_coco.pth") for v in "nsmlx"},
    **{f"dfine-{v}-obj365": _published(f"dfine_{v}_obj365.pth") for v in "smlx"},
    "dfine-l-obj365-e25": _published("dfine_l_obj365_e25.pth"),
    **{f"dfine-{v}-obj2coco": _published(f"dfine_{v}_obj2coco.pth") for v in "smx"},
    "dfine-l-obj2coco": _published("dfine_l_obj2coco_e25.pth"),
    **{f"dfine-seg-{v}-coco": _of_seg(f"dfine_seg_{v}_coco.pt") for v in "nsmlx"},
    **SEG_DETECTORS,
}
# Trained on ImageNet.
BACKBONES: dict[str, Published] = {f"HGNetv2-B{i}": _published(f"PPHGNetV2_B{i}_stage1.pth") for i in range(7)}
# Commits and digests that several independent public projects record for these repositories.
REPOSITORIES: dict[str, Repository] = {
    "ustc-community/dfine-nano-coco": Repository(
        "066438d3d8f0da137a37b38fdf3368fd4afceced",
        "19e06bdc873da819920a8d373b879721a5b9759d822f8213220bb09abbdab58b",
        _LICENCE,
    ),
    "ustc-community/dfine-small-coco": Repository(
        "f79e65b5fbb33ceb9d3ebba042955d7410c608f8",
        "a144baff3a27bfd538fe37b11fa8d4fca5744b8c054b5301e7c699a1379cd18f",
        _LICENCE,
    ),
    "ustc-community/dfine-medium-coco": Repository("4ab9f5e466432f4fcf9a9a023da6aa5ecc9c9829", licence=_LICENCE),
}
