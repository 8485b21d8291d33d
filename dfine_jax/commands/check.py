"""``dfine check``: what is wrong with a dataset, what the model sees of it, and whether it can be learnt at all."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from dfine_jax.commands.early import require_data
from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.config import Config
    from dfine_jax.data.read.audit import Finding, ImageCheck
    from dfine_jax.data.read.dataset import Dataset

NUM_SHOWN = 16
OVERFIT_AP = 0.9
OVERFIT_EPOCHS, OVERFIT_STEPS = 24, 25  # at most so many evaluations, so many steps apart
OVERFIT_BATCH = 8
OVERFIT_SIZE = (320, 320)
_MOST_CLASSES = 30  # printed
_MOST_EXAMPLES = 3  # printed
_MASK_STRIDE = 4  # of the masks shown
_FOUND_ERRORS = 1  # exit status


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``check`` to the command line."""
    parser = subparsers.add_parser(
        "check",
        help="find what is wrong with a dataset before training on it",
        description="Read all splits, decode every picture, and report counts, class balance, broken, duplicate and "
        "out-of-range boxes, masks that are empty, tiny or contradict their box, unreadable and repeated pictures. Two "
        "grids of pictures are written, with masks where there are any: as annotated, and augmented as the model sees "
        "them. The exit status is 1 if there are errors. With --repair nothing is drawn: what can be cured without "
        "guessing is cured in new annotation files, and the exit status is 1 if something is left for you.",
        epilog="examples:\n"
        "  dfine check --data cells\n"
        "  dfine check --data cells --out check --size 320x320 data.augment=dense\n"
        "  dfine check --data cells --overfit 8     trains on 8 images; they must be learnt by heart\n"
        "  dfine check --data cells --repair cells-repaired     then: dfine train n --data cells-repaired ...",
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="of the data, such as data.augment=dense")
    parser.add_argument(
        "--data", metavar="DIR", required=True, type=Path,
        help="folder or file in any format of docs/data.md, data.yaml, or tfds:NAME",
    )  # fmt: skip
    parser.add_argument(
        "--repair", metavar="OUT", type=Path,
        help="write repaired annotations (COCO JSON) to this new folder, or .json file where there is one split",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("check"), help="pictures (default: check)")
    parser.add_argument("--size", metavar="HxW", help="input size of the model (default: 640x640, overfitting 320x320)")
    parser.add_argument(
        "--overfit", metavar="N", type=int,
        help=f"train the smallest variant on N images; they must reach AP {OVERFIT_AP} (minutes)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Report; 0 when there is nothing that keeps training from working."""
    require_data(options.data)
    if options.repair:
        return _repair(options)
    if options.overfit is not None and options.overfit < 1:
        raise UserError(f"--overfit {options.overfit} must be at least 1")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; give a folder for the pictures")
    splits = _read(options.data)
    findings, with_masks = _report(splits, _size(options, (640, 640)))
    unusable = any(finding.level == "error" for finding in findings)
    if unusable:
        print("\nthere are errors: training on this data fails or learns wrong things")
        print(f"dfine check --data {options.data} --repair OUT cures what needs no guessing")
        return _FOUND_ERRORS
    _draw(options, splits["train"], with_masks)
    if options.overfit:
        return _overfit(options, splits["train"])
    return 0


def _repair(options: argparse.Namespace) -> int:
    """Write repaired annotations, print what was done, and read them as training does."""
    from dfine_jax.data.edit.items import WHOLE
    from dfine_jax.data.edit.repair import repair_dataset
    from dfine_jax.data.read.sources import read_dataset

    if options.overfit is not None or options.overrides:
        raise UserError("--repair only writes annotations; check them and train on them with commands of their own")
    repairs, files = repair_dataset(options.data, options.repair)
    for name, repair in repairs.items():
        content = repair.content
        print(f"{name}: {len(content['images'])} images, {len(content['annotations'])} annotations: {files[name]}")
        for mark, notes in (("cured", repair.changes), ("NOT CURED", repair.left)):
            for kind, places in notes.places.items():
                print(f"  {mark}: {len(places)} {kind}")
                for place in places[:_MOST_EXAMPLES]:
                    print(f"      {place}")
        if not repair.changes.places and not repair.left.places:
            print("  nothing was wrong")
    single = len(files) == 1 and options.repair.suffix.lower() == ".json"
    changes = options.repair.with_suffix(".changes.txt") if single else options.repair / "changes.txt"
    print(f"all changes: {changes}; {options.data} is as it was")
    if any(repair.left.places for repair in repairs.values()):
        print("what is not cured needs a decision of yours: correct it, then repair again to another place")
        return _FOUND_ERRORS
    for name in files:
        read_dataset(options.repair, "train" if name == WHOLE else name)  # type: ignore[arg-type] - a split
    print(f"read again without complaint; next: dfine check --data {options.repair}")
    return 0


def _read(data: Path) -> dict[str, Dataset]:
    """The splits there are; the training split must exist, and validation must have its classes."""
    from dfine_jax.data.read.dataset import check_same_categories
    from dfine_jax.data.read.layout import MissingSplitError
    from dfine_jax.data.read.sources import read_dataset

    splits = {"train": read_dataset(data, "train", drop_unlisted=True)}
    try:
        splits["val"] = read_dataset(data, "val", drop_unlisted=True)
    except MissingSplitError as error:
        print(f"no validation split: {error}")
    else:
        check_same_categories(splits["train"], splits["val"])
    return splits


def _report(splits: dict[str, Dataset], size_px: tuple[int, int]) -> tuple[list[Finding], bool]:
    """What was found, and whether the training split has masks that can be trained on."""
    from tqdm import tqdm

    from dfine_jax.data.read import audit
    from dfine_jax.data.read.audit_masks import inspect_masks

    findings, with_masks = [], False
    checks: dict[str, list[ImageCheck]] = {}
    for split, dataset in splits.items():
        lines, masks = audit.summary(dataset), inspect_masks(dataset, size_px)
        if masks.objects:
            lines.insert(4, f"masks    {masks.objects} of the objects")
        first = 5 + bool(masks.objects)  # line of the classes
        with_masks |= split == "train" and masks.can_be_trained_on
        print(f"\n{split}: {dataset.annotation_file}")
        for line in lines[: first + _MOST_CLASSES]:
            print(f"  {line}" if line else "")
        if len(lines) > first + _MOST_CLASSES:
            print(f"  and {len(lines) - first - _MOST_CLASSES} rarer classes")
        content = audit.inspect_content(dataset, size_px, for_training=split == "train")
        own = [*audit.inspect_annotations(dataset), *masks.findings, *content]
        if own:
            print()
        for finding in own:
            print(f"  {finding}")
        findings += own
        bar = tqdm(audit.inspect_images(dataset.records), total=len(dataset), desc=f"decode {split}", disable=None)
        checks[split] = list(bar)
    print(f"\nall {sum(map(len, checks.values()))} pictures were decoded")
    pictures = audit.image_findings(checks)
    for finding in pictures:
        print(f"  {finding}")
    return findings + pictures, with_masks


def _draw(options: argparse.Namespace, dataset: Dataset, with_masks: bool) -> None:
    """Grids of the training split: as annotated, and in the middle of the training as configured."""
    from dfine_jax import families
    from dfine_jax.config import Config, DataConfig
    from dfine_jax.data.load.grid import annotated_grid, batch_grid
    from dfine_jax.data.load.pipeline import TrainLoader
    from dfine_jax.data.picture.images import save_picture
    from dfine_jax.data.read.coco import with_outlines
    from dfine_jax.system.config_values import override

    height, width = _size(options, (640, 640))
    model = families.smallest()
    input_of = DataConfig(height_px=height, width_px=width, start_augment_epoch=0)
    config: Config = override(
        Config(model, families.of(model).Loss(), data=input_of),
        options.overrides,
    )
    families.validate(config)
    few = tuple(dataset.records[:: max(1, len(dataset) // NUM_SHOWN)][:NUM_SHOWN])
    shown = dataclasses.replace(dataset, records=few)
    shown = with_outlines(shown) if with_masks else shown
    save_picture(annotated_grid(shown.records, dataset.names), options.out / "annotated.jpg", quality=90)

    data = config.data
    stride = _MASK_STRIDE if with_masks else None
    preprocess = families.of(model).preprocess(model, data)
    few = {"seed": config.train.seed, "batch_size": NUM_SHOWN}
    loader = TrainLoader(dataset, data, preprocess, (), **few, workers=0, mask_stride=stride)
    print()
    for note in loader.notes:
        print(note)
    step = data.start_augment_epoch * loader.steps_per_epoch
    with closing(loader.batches(step)) as batches:
        shown_batch = next(batches)
    titled = loader.names(step), loader.treatment(step)
    sheet = batch_grid([shown_batch], dataset.names, NUM_SHOWN, *titled)
    save_picture(sheet, options.out / "augmented.jpg", quality=90)
    print(f"pictures: {options.out / 'annotated.jpg'} and, as the model sees them, {options.out / 'augmented.jpg'}")


def _overfit(options: argparse.Namespace, dataset: Dataset) -> int:
    """Train on a few images and evaluate on the same; the status says whether they were learnt."""
    import shutil

    from dfine_jax.system.host_memory import keep_freed_memory
    from dfine_jax.training.run.loop import train

    keep_freed_memory()
    few = few_images(dataset, options.overfit)
    config = overfit_config(few, _size(options, OVERFIT_SIZE), options.overrides)
    out = options.out / "overfit"
    if out.exists():
        shutil.rmtree(out)
    repeats = -(-OVERFIT_STEPS * config.train.batch_size // len(few))  # an epoch of one step would be mostly reports
    print(f"\ntraining on {len(few)} images until AP {OVERFIT_AP}, at most {OVERFIT_EPOCHS * OVERFIT_STEPS} steps")
    repeated = dataclasses.replace(few, records=tuple(few.records) * repeats)
    result = train(config, repeated, few, out, kept_programs=options.kept_programs)
    if not result.finished:
        raise KeyboardInterrupt
    if result.best_ap >= OVERFIT_AP:
        print(f"AP {result.best_ap:.3f} on the {len(few)} images it was trained on: the data can be learnt")
        return 0
    size = f"{config.data.height_px}x{config.data.width_px}"
    print(
        f"AP {result.best_ap:.3f} on the {len(few)} images it was trained on; {OVERFIT_AP} was expected. Look at "
        f"{options.out / 'annotated.jpg'}: are boxes and classes right? Objects may also be too small for {size} "
        "(--size)"
    )
    return _FOUND_ERRORS


def few_images(dataset: Dataset, count: int) -> Dataset:
    """So many images with objects, spread over the dataset."""
    full = [record for record in dataset.records if len(record.labels)]
    step = max(1, len(full) // count)
    return dataclasses.replace(dataset, records=tuple(full[::step][:count]))


def overfit_config(data: Dataset, size_px: tuple[int, int], overrides: list[str]) -> Config:
    """The smallest model with a high rate, no augmentation and a short memory of the average."""
    from dfine_jax import families
    from dfine_jax.config import Config, DataConfig, OptimConfig, TrainConfig
    from dfine_jax.system.config_values import override

    smallest = families.smallest()
    batch = min(OVERFIT_BATCH, len(data))
    config = Config(
        model=families.of(smallest).with_classes(smallest, len(data.names), data.names),
        loss=families.of(smallest).Loss(),
        optim=OptimConfig(lr=8e-4, backbone_lr=4e-4, warmup_steps=20, ema_decay=0.97, ema_warmup_steps=20),
        data=DataConfig(height_px=size_px[0], width_px=size_px[1], augment="none", workers=1),
        train=TrainConfig(
            epochs=OVERFIT_EPOCHS,
            batch_size=batch,
            eval_batch_size=batch,
            checkpoint_every=OVERFIT_EPOCHS,
            target_ap=OVERFIT_AP,
        ),
    )
    kept = [text for text in overrides if not text.startswith("data.augment")]
    return override(config, kept)


def _size(options: argparse.Namespace, default: tuple[int, int]) -> tuple[int, int]:
    from dfine_jax.commands.train_plan import parse_size

    return parse_size(options.size) if options.size else default
