from dfine_jax.coco_names import COCO_CATEGORY_IDS, COCO_NAMES, OBJECTS365_ROWS


def test_tables_agree_in_length_and_known_entries():
    assert len(COCO_NAMES) == len(COCO_CATEGORY_IDS) == len(OBJECTS365_ROWS) == 80
    assert len(set(COCO_NAMES)) == len(set(OBJECTS365_ROWS)) == 80
    known = dict(zip(COCO_NAMES, COCO_CATEGORY_IDS, strict=True))
    expected = {"person": 1, "stop sign": 13, "cat": 17, "backpack": 27, "bottle": 44, "couch": 63, "dining table": 67,
                "toilet": 70, "tv": 72, "book": 84, "toothbrush": 90}  # fmt: skip
    assert {name: known[name] for name in expected} == expected
    assert list(COCO_CATEGORY_IDS) == sorted(COCO_CATEGORY_IDS)
    rows = dict(zip(COCO_NAMES, OBJECTS365_ROWS, strict=True))
    assert (rows["person"], rows["bicycle"], rows["toothbrush"]) == (1, 47, 227) and max(OBJECTS365_ROWS) < 366
