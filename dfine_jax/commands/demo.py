"""``dfine demo``: data, training, evaluation, export, prediction and a report, in minutes; nothing is downloaded."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import shlex
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.errors import UserError
from dfine_jax.families import TASKS
from dfine_jax.system.installed import pip_install

if TYPE_CHECKING:
    from dfine_jax.config import Config
    from dfine_jax.converters.gate.report import GateReport
    from dfine_jax.data.read.dataset import Dataset
    from dfine_jax.evaluation.score import Metrics

PICTURE_PX, INPUT_PX = 240, 128
NUM_TRAIN, NUM_VAL = 1200, 100
BATCH_SIZE = 8
EPOCHS = 7


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``demo`` to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="whole tour on a synthetic dataset",
        description=f"A tour in about four minutes on two CPU cores: draw {NUM_TRAIN + NUM_VAL} pictures of shapes, "
        "train a small detector on them from nothing, evaluate it before and after, export it to ONNX and compare the "
        "file with the model, detect, and write pictures and a page with the results. With masks it takes ten to "
        "thirteen minutes.",
        epilog="examples:\n  dfine demo --out demo                   then open demo/report.html\n"
        "  dfine demo --task segment --out demo    the same with masks",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("demo"), help="new folder (default: demo)")
    parser.add_argument(
        "--task", choices=TASKS, default="detect", help="segment: masks of the objects too (default: detect)"
    )
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
        _tour(out, options.task, options.epochs, started)
    return 0


def _tour(out: Path, task: str, epochs: int, started: float) -> None:
    from dfine_jax.commands.demo_page import Tour, draw_pairs, write_page
    from dfine_jax.data.read.synthetic import make_shapes_dataset

    print(f"1/5  draw {NUM_TRAIN} training and {NUM_VAL} validation pictures: {out / 'data'}", flush=True)
    make_shapes_dataset(out / "data", NUM_TRAIN, NUM_VAL, PICTURE_PX, seed=0)
    train_data, val_data = _read(out / "data", "train"), _read(out / "data", "val")

    print("2/5  train (before the first step the program is compiled, a minute or two)", flush=True)
    config = demo_config(len(train_data.names), epochs, task)
    before, after = _train(config, train_data, val_data, out / "run")
    print(f"3/5  average precision before and after training: {before.ap:.3f}, {after.ap:.3f}", flush=True)
    if before.masks and after.masks:
        print(f"     of masks: {before.masks.ap:.3f}, {after.masks.ap:.3f}", flush=True)

    report = _export(out)
    figures = draw_pairs(out, val_data, after)
    minutes = (time.monotonic() - started) / 60
    commands = going_on(out, task)
    write_page(out, Tour(config, NUM_TRAIN, minutes, before, after, report, figures, commands))
    print(f"5/5  detect and draw: {out / 'pictures'}")
    print(f"\ndone in {minutes:.1f} minutes; open {out / 'report.html'}")
    width = max(len(what) for what, _ in commands) + 3
    for what, command in commands:
        print(f"{what + ':':<{width}}{command}")


def going_on(out: Path, task: str) -> list[tuple[str, str]]:
    """What to do next, and the command for it."""
    best, data = str(out / "run" / "best"), out / "data"
    masks, segment = (["--masks", "masks"], ["--task", task]) if task == "segment" else ([], [])
    lines = {
        "more pictures": ["predict", best, str(data / "val"), "--out", "drawn", *masks],
        "all numbers": ["evaluate", best, "--data", str(data), "--out", "evaluation"],
        "your own data": ["train", "n", *segment, "--data", "DIR", "--out", "DIR"],
    }
    return [(what, f"dfine {shlex.join(words)}") for what, words in lines.items()]


def demo_config(num_classes: int, epochs: int, task: str) -> Config:
    """The smallest model for small pictures: fewer queries, because there are few places, and rates for a short run."""
    from dfine_jax import families
    from dfine_jax.config import Config, DataConfig, OptimConfig, TrainConfig
    from dfine_jax.system.config_values import override

    steps = epochs * (NUM_TRAIN // BATCH_SIZE)
    smallest = families.smallest()
    own = families.of(smallest)
    config = Config(
        model=dataclasses.replace(own.with_classes(own.tasks[task](smallest), num_classes, None), num_queries=40),
        loss=own.Loss(),
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
            eval_every=max(1, epochs // 3) if task == "detect" else 1,
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
    from dfine_jax.training.run.setup import StartWeights, val_truth
    from dfine_jax.training.step.step import make_eval_step, predict_function

    variables = of(config.model).init(config.model, jax.random.key(config.train.seed))
    result = train(config, train_data, val_data, out, start=StartWeights(variables))
    if result.metrics is None or not result.finished:
        raise KeyboardInterrupt
    # The fresh weights come last: training has compiled the evaluation beside its own program, and it is in the cache.
    preprocess = of(config.model).preprocess(config.model, config.data)
    loader = EvalLoader(val_data, preprocess, batch_size=config.train.eval_batch_size)
    predict = predict_function(make_eval_step(config), variables)
    truth, rules = val_truth(config, val_data) or val_data, of(config.model).answer_rules(config.model)
    return evaluate(predict, loader, truth, val_data.classes, None, None, rules), result.metrics


def _export(out: Path) -> GateReport | None:
    """The trained model as an ONNX file, compared with it; None without the packages of the extra."""
    if missing := [name for name in ("jax2onnx", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]:
        print(f"4/5  export left out: {', '.join(missing)} not installed ({pip_install('export')})", flush=True)
        return None
    from dfine_jax.commands import export

    print(f"4/5  export and compare: {out / 'model.onnx'}", flush=True)
    parser = argparse.ArgumentParser()
    export.add_parser(parser.add_subparsers())
    given = ["export", str(out / "run" / "best"), "--data", str(out / "data"), "--out", str(out / "model.onnx")]
    return export.export_checked(parser.parse_args(given))
