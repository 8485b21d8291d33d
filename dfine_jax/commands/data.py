"""``dfine data``: datasets divided into splits, and converted from one format to another."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dfine_jax.commands.early import require_data
from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.data.edit.items import Items

_FORMATS = ("coco", "yolo", "voc", "labelme", "via", "cvat", "labelstudio")
_MOST_CLASSES = 30  # printed


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``data`` to the command line."""
    parser = subparsers.add_parser(
        "data",
        help="divide a dataset into splits, or convert it to another format",
        description="Write a dataset anew, as a folder that is there whole or not at all; the original is only read.",
        epilog="examples:\n"
        "  dfine data split --data labels.json --out cells --val 0.2\n"
        "  dfine data split --data voc --out cells --shares 0.8/0.1/0.1 --group '^(patient\\d+)'\n"
        "  dfine data convert --data cells --to yolo --out cells-yolo --copy",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    split = actions.add_parser(
        "split",
        help="divide pictures into train, val and test",
        description="Divide the pictures such that each split has the same share of every class (iterative "
        "stratification), as COCO JSON in DIR/train, DIR/val and DIR/test. Where there is a test split and no "
        "validation split, it stays as it is.",
        epilog="examples:\n"
        "  dfine data split --data labels.json --out cells --val 0.2\n"
        "  dfine data split --data frames --out cells --shares 0.8/0.1/0.1 --group '^(.*)_frame'",
    )
    _add_files(split)
    split.add_argument("--shares", metavar="A/B/C", help="of train, validation and test, such as 0.8/0.1/0.1 or 80/20")
    split.add_argument("--val", metavar="SHARE", type=float, help="of validation (default: 0.2, with --test none)")
    split.add_argument("--test", metavar="SHARE", type=float, help="of test (default: none)")
    split.add_argument("--seed", metavar="N", type=int, default=0, help="another one, another division (default: 0)")
    split.add_argument(
        "--group", metavar="REGEX",
        help="pictures in whose names it finds the same (its first group, if it has one) stay together",
    )  # fmt: skip
    split.add_argument("--anew", action="store_true", help="divide all pictures, whatever splits there are")
    convert = actions.add_parser(
        "convert",
        help="write a dataset in another format",
        description="Write a dataset in another format, split by split. What the format cannot hold is counted.",
        epilog="examples:\n"
        "  dfine data convert --data cells --to yolo --out cells-yolo\n"
        "  dfine data convert --data annotations.xml --to coco --out cells --copy",
    )
    _add_files(convert)
    convert.add_argument("--to", choices=_FORMATS, required=True, help="format to write")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR", required=True, type=Path, help="folder or file in any format of docs/data.md"
    )
    parser.add_argument("--out", metavar="DIR", required=True, type=Path, help="new folder")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--copy", action="store_const", const="copy", dest="mode", help="copy the pictures")
    where.add_argument(
        "--link", action="store_const", const="link", dest="mode",
        help="link the pictures (default: name them where they are; yolo, voc, cvat and labelstudio need them: link)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Divide or convert, and print what was written."""
    require_data(options.data)
    from dfine_jax.data.edit.items import read_items
    from dfine_jax.data.formats.placing import check_new
    from dfine_jax.data.formats.write import write

    check_new(options.out)
    if options.action == "split":
        items, form = _divided(options), "coco"
    else:
        items, form = read_items(options.data), options.to
    if not any(items.splits.values()):
        raise UserError(f"{options.data} has no pictures")
    for line in items.notes.lines():
        print(f"reading: {line}")
    notes = write(items, form, options.out, options.mode)
    for line in notes.lines():
        print(f"writing: {line}")
    _print(items, options.out)
    return 0


def _divided(options: argparse.Namespace) -> Items:
    import dataclasses

    from dfine_jax.data.edit.items import WHOLE, read_items
    from dfine_jax.data.edit.splitting import divide, group_keys, parse_shares

    if options.seed < 0:
        raise UserError(f"--seed {options.seed} must be 0 or more")
    shares = parse_shares(options.shares, options.val, options.test)
    items = read_items(options.data)
    kept = {} if options.anew else {name: own for name, own in items.splits.items() if name == "test"}
    if "val" in items.splits and not options.anew:
        raise UserError(
            f"{options.data} has the splits {', '.join(items.splits)}; --anew divides all of its pictures anew"
        )
    if kept and "test" in shares:
        raise UserError(
            f"{options.data} has a test split, which stays as it is; leave out the share of test, or add --anew"
        )
    listed = [item for name, own in items.splits.items() if name not in kept for item in own]
    pictures = list({item.path: item for item in reversed(listed)}.values())[::-1]
    if len(pictures) < len(listed):
        print(
            f"{len(listed) - len(pictures)} pictures are in several splits; they are taken once, as the first has them"
        )
    if not pictures:
        raise UserError(f"{options.data} has no pictures to divide but its test split; --anew divides these")
    keys = group_keys(pictures, options.group) if options.group else [str(item.path) for item in pictures]
    if options.group:
        alone = sum(key.startswith("alone ") for key in keys)
        print(f"{len(set(keys)) - alone} groups of pictures; {alone} pictures in no group")
    splits = divide(pictures, shares, options.seed, keys) | kept
    return dataclasses.replace(items, splits={k: splits[k] for k in ("train", "val", "test", WHOLE) if k in splits})


def _print(items: Items, out: Path) -> None:
    """Pictures and objects of each class by split."""
    names = {category["id"]: category["name"] for category in items.categories}
    counts = {split: dict.fromkeys(names, 0) for split in items.splits}
    for split, own in items.splits.items():
        for item in own:
            for annotation in item.annotations:
                if annotation["category_id"] in names:
                    counts[split][annotation["category_id"]] += 1
    width = max([len("pictures"), *(len(name) for name in names.values())])
    print(f"\n{'':{width}} " + "".join(f"{split:>10}" for split in counts))
    print(f"{'pictures':{width}} " + "".join(f"{len(own):>10}" for own in items.splits.values()))
    for number, name in list(names.items())[:_MOST_CLASSES]:
        print(f"{name:{width}} " + "".join(f"{own[number]:>10}" for own in counts.values()))
    if len(names) > _MOST_CLASSES:
        print(f"and {len(names) - _MOST_CLASSES} more classes")
    print(f"\nwritten: {out}")
