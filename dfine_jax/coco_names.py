"""Category tables of COCO and Objects365 as the published weights use them.

The published COCO weights number their classes 0..79 in ascending order of the COCO category id, which has gaps.
"""

from __future__ import annotations

COCO_NAMES: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip

# Hugging Face's config.json names six COCO classes as PASCAL VOC does.
COCO_ALIASES: dict[str, str] = {
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted plant",
    "diningtable": "dining table", "tvmonitor": "tv",
}  # fmt: skip

COCO_CATEGORY_IDS: tuple[int, ...] = (
    *range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91),
)  # fmt: skip

# Row of the Objects365 score heads (366 rows; row 0 is unused, hence one above the 0-based class index) that stands for
# each COCO class. Loose matches: bird is Wild Bird, suitcase Luggage, skis Skating and Skiing Shoes, sports ball
# Baseball, tv Monitor/TV, teddy bear Stuffed Toy.
OBJECTS365_CLASSES = 366
OBJECTS365_ROWS: tuple[int, ...] = tuple(
    1 + index
    for index in (
        0, 46, 5, 58, 114, 55, 116, 65, 21, 40, 176, 127, 249, 24, 56, 139, 92, 78, 99, 96,
        144, 295, 178, 180, 38, 39, 13, 43, 120, 219, 148, 173, 165, 154, 137, 113, 145, 146, 204, 8,
        35, 10, 88, 84, 93, 26, 112, 82, 265, 104, 141, 152, 234, 143, 150, 97, 2, 50, 25, 75,
        98, 153, 37, 73, 115, 132, 106, 61, 163, 134, 277, 81, 133, 18, 94, 30, 169, 70, 328, 226,
    )
)  # fmt: skip

# What Objects365 calls them, in lower case, where the spelling differs.
OBJECTS365_ALIASES: dict[str, str] = {
    "wild bird": "bird", "luggage": "suitcase", "skating and skiing shoes": "skis", "baseball": "sports ball",
    "monitor/tv": "tv", "moniter/tv": "tv", "stuffed toy": "teddy bear", "handbag/satchel": "handbag",
    "bowl/basin": "bowl", "orange/tangerine": "orange", "dinning table": "dining table", "hair dryer": "hair drier",
}  # fmt: skip


def objects365_names() -> tuple[str, ...]:
    """Names for the 366 rows of Objects365 weights: COCO's where a row stands for one of its classes."""
    coco = dict(zip(OBJECTS365_ROWS, COCO_NAMES, strict=True))
    return tuple(coco.get(row, f"objects365_{row}") for row in range(OBJECTS365_CLASSES))
