from dfine_jax.data.read.coco_names import (
    COCO_CATEGORY_IDS,
    COCO_NAMES,
    OBJECTS365_CLASSES,
    OBJECTS365_NAMES,
    objects365_names,
)


def test_tables_agree_in_length_and_known_entries():
    assert len(COCO_NAMES) == len(COCO_CATEGORY_IDS) == 80
    assert len(set(COCO_NAMES)) == 80
    known = dict(zip(COCO_NAMES, COCO_CATEGORY_IDS, strict=True))
    expected = {"person": 1, "stop sign": 13, "cat": 17, "backpack": 27, "bottle": 44, "couch": 63, "dining table": 67,
                "toilet": 70, "tv": 72, "book": 84, "toothbrush": 90}  # fmt: skip
    assert {name: known[name] for name in expected} == expected
    assert list(COCO_CATEGORY_IDS) == sorted(COCO_CATEGORY_IDS)


def test_the_rows_of_objects365_are_its_category_ids():
    assert len(OBJECTS365_NAMES) == len(set(OBJECTS365_NAMES)) == 365
    rows = {name: row for row, name in enumerate(objects365_names())}
    assert len(rows) == OBJECTS365_CLASSES == 366
    expected = {"Person": 1, "Sneakers": 2, "Street Lights": 12, "Helmet": 18, "Bicycle": 47, "Stuffed Toy": 71,
                "Soccer": 119, "Gas stove": 150, "Billards": 190, "Tissue": 226, "Toothbrush": 227, "CD": 285,
                "Campel": 308, "Hair Dryer": 329, "Table Tennis": 365}  # fmt: skip
    assert {name: rows[name] for name in expected} == expected
