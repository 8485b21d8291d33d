"""``dfine demo``: data, training, evaluation, export, prediction and a report, in minutes; nothing is downloaded."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.errors import UserError
from dfine_jax.system.files import write_whole

if TYPE_CHECKING:
    from dfine_jax.config import Config
    from dfine_jax.converters.gate.report import GateReport
    from dfine_jax.data.read.dataset import Dataset, Record
    from dfine_jax.evaluation.report import Figure, Section
    from dfine_jax.evaluation.score import Metrics

PICTURE_PX, INPUT_PX = 240, 128
NUM_TRAIN, NUM_VAL = 1200, 100
BATCH_SIZE = 8
EPOCHS = 7
NUM_SHOWN = 4
_NUMBERS = (("AP", "ap"), ("AP at IoU 0.50", "ap50"), ("AP at IoU 0.75", "ap75"), ("AR, 100 detections", "ar_100"))


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``demo`` to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="whole tour on a synthetic dataset",
        description=f"A tour in about four minutes on two CPU cores: draw {NUM_TRAIN + NUM_VAL} pictures of shapes, "
        "train a small detector on them from nothing, evaluate it before and after, export it to ONNX and compare the "
        "file with the model, detect, and write pictures and a page with the results.",
        epilog="example:\n  dfine demo --out demo      then open demo/report.html",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("demo"), help="new folder (default: demo)")
    parser.add_argument(
        "--epochs", metavar="N", type=int, default=EPOCHS,
        help=f"passes over the training pictures (default: {EPOCHS}); time and accuracy grow with it",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """The tour; everything goes into one new folder."""
    out: Path = options.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another --out, or remove it")
    if options.epochs < 1:
        raise UserError(f"--epochs {options.epochs} must be at least 1")
    started = time.monotonic()
    logging.getLogger().setLevel(logging.ERROR)  # of other libraries; this one's have a level of their own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _tour(out, options.epochs, started)
    return 0


def _tour(out: Path, epochs: int, started: float) -> None:
    from dfine_jax.data.read.synthetic import make_shapes_dataset

    print(f"1/5  draw {NUM_TRAIN} training and {NUM_VAL} validation pictures: {out / 'data'}", flush=True)
    make_shapes_dataset(out / "data", NUM_TRAIN, NUM_VAL, PICTURE_PX, seed=0)
    train_data, val_data = _read(out / "data", "train"), _read(out / "data", "val")

    print("2/5  train (before the first step the program is compiled, a minute or two)", flush=True)
    config = demo_config(len(train_data.names), epochs)
    before, after = _train(config, train_data, val_data, out / "run")
    print(f"3/5  average precision before and after training: {before.ap:.3f}, {after.ap:.3f}", flush=True)

    report = _export(out)
    threshold = after.report.best_threshold
    figures = _draw(out, val_data, threshold)
    minutes = (time.monotonic() - started) / 60
    _write_report(out, config, minutes, before, after, report, figures)
    print(f"5/5  detect and draw: {out / 'pictures'}")
    print(f"\ndone in {minutes:.1f} minutes; open {out / 'report.html'}")
    print(f"more pictures:  dfine predict {out / 'run' / 'best'} {out / 'data' / 'val'} --out drawn")
    print("your own data:  dfine train n --data DIR --out DIR")


def demo_config(num_classes: int, epochs: int) -> Config:
    """The smallest model for small pictures: fewer queries, because there are few places, and rates for a short run."""
    from dfine_jax import families
    from dfine_jax.config import Config, DataConfig, OptimConfig, TrainConfig
    from dfine_jax.system.config_values import override

    steps = epochs * (NUM_TRAIN // BATCH_SIZE)
    smallest = families.smallest()
    config = Config(
        model=dataclasses.replace(smallest, num_classes=num_classes, num_queries=40),
        loss=families.of(smallest).Loss(),
        optim=OptimConfig(
            lr=8e-4,
            backbone_lr=8e-4,
            schedule="flat_cosine",
            flat_epochs=epochs // 2,
            min_lr_ratio=0.1,
            warmup_steps=min(60, steps // 4),
            ema_decay=0.99,
            ema_warmup_steps=min(50, steps // 4),
        ),
        data=DataConfig(height_px=INPUT_PX, width_px=INPUT_PX, augment="none", workers=1),
        train=TrainConfig(
            epochs=epochs,
            batch_size=BATCH_SIZE,
            eval_batch_size=20,
            eval_every=max(1, epochs // 3),
            checkpoint_every=epochs,
        ),
    )
    return override(config, ["loss.num_denoising=20"])


def _read(folder: Path, split: Any) -> Dataset:
    from dfine_jax.data.read.sources import read_dataset

    return read_dataset(folder, split)


def _train(config: Config, train_data: Dataset, val_data: Dataset, out: Path) -> tuple[Metrics, Metrics]:
    """Metrics of the fresh and of the trained model."""
    import jax

    from dfine_jax.data.load.pipeline import EvalLoader
    from dfine_jax.evaluation.evaluate import evaluate
    from dfine_jax.families import of
    from dfine_jax.training.run.loop import train
    from dfine_jax.training.run.setup import StartWeights
    from dfine_jax.training.step.step import make_eval_step, predict_function

    variables = of(config.model).init(config.model, jax.random.key(config.train.seed))
    result = train(config, train_data, val_data, out, start=StartWeights(variables))
    if result.metrics is None or not result.finished:
        raise KeyboardInterrupt
    # The fresh weights come last: training has compiled the evaluation beside its own program, and it is in the cache.
    data = config.data
    loader = EvalLoader(
        val_data, height_px=data.height_px, width_px=data.width_px, batch_size=config.train.eval_batch_size
    )
    predict = predict_function(make_eval_step(config), variables)
    return evaluate(predict, loader, val_data, val_data.classes), result.metrics


def _export(out: Path) -> GateReport | None:
    """The trained model as an ONNX file, compared with it; None without the packages of the extra."""
    if missing := [name for name in ("jax2onnx", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        print(f'4/5  export left out: {", ".join(missing)} not installed (pip install "dfine-jax[export]")', flush=True)
        return None
    from dfine_jax.commands import export

    print(f"4/5  export and compare: {out / 'model.onnx'}", flush=True)
    parser = argparse.ArgumentParser()
    export.add_parser(parser.add_subparsers())
    given = ["export", str(out / "run" / "best"), "--data", str(out / "data"), "--out", str(out / "model.onnx")]
    return export.export_checked(parser.parse_args(given))


def _export_section(report: GateReport | None) -> list[Section]:
    from dfine_jax.evaluation.report import Section, Table

    if report is None or report.accuracy is None:
        return []
    rows = [
        ("AP of the model", f"{report.accuracy.model:.3f}"),
        ("AP of the file", f"{report.accuracy.artefact:.3f}"),
        ("largest difference of a box", f"{max(c.box_most_px for c in report.comparisons):.2g} pixels"),
        ("largest difference of a score", f"{max(c.score_most for c in report.comparisons):.2g}"),
    ]
    ran = ", ".join(f"{name} {value}" for name, value in report.ran_on.items())
    return [Section("Export", f"{report.file}, run on {ran}, beside the model.", [Table(("ONNX", "measured"), rows)])]


def _draw(out: Path, val_data: Dataset, threshold: float) -> list[Figure]:
    """Annotated and detected pictures side by side, of validation images with several objects."""
    from PIL import Image

    from dfine_jax.data.picture.draw import draw_boxes
    from dfine_jax.data.picture.images import save_picture
    from dfine_jax.evaluation.report import Figure
    from dfine_jax.prediction.detector import Detector

    detector = Detector(out / "run" / "best", threshold=threshold)
    shown: list[Record] = sorted(val_data.records, key=lambda r: -len(r.labels))[:NUM_SHOWN]
    figures = []
    for record in shown:
        result = detector(record.path)
        names = [val_data.names[label] for label in record.labels]
        annotated = draw_boxes(Image.open(record.path), record.boxes_xyxy_px, record.labels, names)
        drawn = result.draw(record.path)
        pair = Image.new("RGB", (annotated.width + drawn.width + 8, drawn.height), "white")
        pair.paste(annotated, (0, 0))
        pair.paste(drawn, (annotated.width + 8, 0))
        save_picture(pair, out / "pictures" / f"{record.path.stem}.png")
        caption = f"{record.path.name}: {len(record.labels)} annotated (left), {len(result)} detected (right)"
        figures.append(Figure(pair, caption))
    return figures


def _write_report(
    out: Path,
    config: Config,
    minutes: float,
    before: Metrics,
    after: Metrics,
    report: GateReport | None,
    figures: list[Figure],
) -> None:
    from dfine_jax.evaluation.report import Chart, Curve, Section, Table, page
    from dfine_jax.training.report.log import read_metrics

    rows = read_metrics(out / "run")

    def curve(name: str, column: str, start: list[tuple[float, float]]) -> Curve:
        return Curve(name, start + [(row["epoch"], row[column]) for row in rows if column in row])

    precision = Chart(
        "Precision on the validation pictures, averaged weights",
        "epoch",
        [curve("AP", "ap", [(0.0, before.ap)]), curve("AP at IoU 0.50", "ap50", [(0.0, before.ap50)])],
    )
    loss = Chart("Training loss, mean of each epoch", "epoch", [curve("loss", "loss", [])])
    numbers = Table(
        ("validation", "before", "after"),
        [(name, f"{getattr(before, key):.3f}", f"{getattr(after, key):.3f}") for name, key in _NUMBERS],
    )
    classes = Table(
        ("AP by class", "before", "after"),
        [(name, f"{before.per_class[name]:.3f}", f"{value:.3f}") for name, value in after.per_class.items()],
    )
    sections: list[Section] = [
        Section(
            "Training",
            f"{config.train.epochs} passes over {NUM_TRAIN} pictures, seen at {INPUT_PX} pixels, "
            f"{config.train.batch_size} at a time; {minutes:.1f} minutes for the whole tour.",
            [precision, loss],
        ),
        Section("Result", f"{NUM_VAL} validation pictures, never trained on.", [numbers, classes]),
        *_export_section(report),
        Section(
            "Pictures",
            "Validation pictures with the most objects; detections from the score with the best F1 on, "
            f"{after.report.best_threshold:.2f}.",
            figures,
        ),
    ]
    title = "Object detection in JAX: a tour"
    text = "A small detector, trained from random weights on drawn shapes to tell circles, rectangles, triangles "
    write_whole(out / "report.html", page(title, text + "and stars apart and find them.", sections))
