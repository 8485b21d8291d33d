"""Words that people bring from other programs, and what they are here: commands, options, values, keys.

From Ultralytics, YOLOv5, RF-DETR, the official programs of the families, and from what is usual elsewhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence

COMMANDS = {
    **dict.fromkeys(("val", "test", "eval", "validate", "validation", "score", "metrics"), "evaluate"),
    **dict.fromkeys(("detect", "infer", "inference", "track", "segment", "run", "demo.py", "visualize"), "predict"),
    **dict.fromkeys(("fit", "finetune", "fine-tune", "learn", "tune", "resume"), "train"),
    **dict.fromkeys(("onnx", "deploy", "compile", "quantize", "trt"), "export"),
    **dict.fromkeys(("bench", "speed", "latency", "profile"), "benchmark"),
    **dict.fromkeys(("server", "api", "app", "web", "ui", "gradio", "http"), "serve"),
    **dict.fromkeys(("info", "env", "version", "checks", "settings", "status"), "doctor"),
    **dict.fromkeys(("import", "reparameterization"), "convert"),
    **dict.fromkeys(("split", "dataset", "datasets", "coco2yolo", "etl"), "data"),
    **dict.fromkeys(("check-errors", "suspects", "clean"), "errors"),
    **dict.fromkeys(("inspect", "verify", "lint", "repair", "stats"), "check"),
    **dict.fromkeys(("quickstart", "tutorial", "example"), "demo"),
}

# Option -> what it is here, the first that the command has: an option, a positional argument (capitals), a key
# (``optim.lr=``, of commands that take keys); or a sentence, after "!".
_THRESHOLD, _OUT, _SIZE = ("--threshold",), ("--out DIR", "--json FILE"), ("--size HxW", "!the file has one input size")
_SOURCE = ("SOURCE", "--data DIR")
_MODEL = ("MODEL", "--weights W", "CHECKPOINT")
_AMP = ("!the precision follows the device, float32 on CPU and bfloat16 elsewhere; model.precision=float32 sets it",)
_HALF = ("--precision fp16", "!the precision is chosen when exporting: dfine export --precision fp16")
_SUPPRESSION = ("!nothing is suppressed afterwards, the model answers with each object once",)
_SHOWN = ("!pictures and videos are written, --out DIR says where",)
OPTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("conf", "conf-thres", "conf-thresh", "confidence", "confidence-threshold"), _THRESHOLD),
    **dict.fromkeys(("score", "score-thr", "score-threshold", "score-thresh", "thresh", "thr", "th"), _THRESHOLD),
    **dict.fromkeys(("imgsz", "img", "img-size", "image-size", "imgsize", "resolution", "input-size", "shape"), _SIZE),
    **dict.fromkeys(
        ("batch", "bs", "b", "batchsize", "train-batch-size", "total-batch-size", "samples"),
        ("--batch-size N", "--batch N", "--batches N,N"),
    ),
    **dict.fromkeys(("source", "input", "image", "img-path", "im-file", "images", "file", "video", "folder"), _SOURCE),
    **dict.fromkeys(("model", "checkpoint", "ckpt", "model-path"), _MODEL),
    **dict.fromkeys(("weights", "w"), ("--weights W", *_MODEL)),
    **dict.fromkeys(("name", "project", "output", "output-dir", "out-dir", "outdir", "save-dir", "o", "dest"), _OUT),
    **dict.fromkeys(("save", "save-path", "exp-name", "run-dir", "log-dir", "summary-dir"), _OUT),
    "exist-ok": ("!results replace those of the same name", ),
    **dict.fromkeys(("save-txt", "txt"), ("--labels DIR",)),
    **dict.fromkeys(("save-crop", "save-crops", "crop"), ("--crops DIR",)),
    **dict.fromkeys(("save-json", "json-out", "to-json", "format-json"), ("--json FILE",)),
    **dict.fromkeys(("half", "fp16"), _HALF),
    "int8": ("--precision int8 --to openvino", "!dfine export --to openvino --precision int8"),
    **dict.fromkeys(("amp", "use-amp", "mixed-precision", "bf16", "fp32"), _AMP),
    **dict.fromkeys(("epoch", "e", "max-epochs", "num-epochs", "n-epochs", "epoches"), ("--epochs N",)),
    **dict.fromkeys(("c", "config", "cfg", "yaml", "recipe", "variant"), ("RECIPE", "MODEL", "CHECKPOINT")),
    **dict.fromkeys(("r", "resume-from", "resume-path"), ("--resume", "MODEL", "CHECKPOINT")),
    **dict.fromkeys(
        ("t", "tuning", "finetune", "pretrained", "pretrain", "pretrain-weights", "load"), ("--weights W", "MODEL")
    ),
    **dict.fromkeys(("test-only", "val-only", "eval", "eval-only"), ("!dfine evaluate MODEL --data DIR does that",)),
    "seed": ("train.seed=",),
    **dict.fromkeys(("lr", "lr0", "learning-rate", "base-lr"), ("optim.lr=",)),
    **dict.fromkeys(("lr-encoder", "lr-backbone", "backbone-lr"), ("optim.backbone_lr=",)),
    **dict.fromkeys(("weight-decay", "wd"), ("optim.weight_decay=",)),
    "optimizer": ("optim.optimizer=",),
    **dict.fromkeys(("workers", "num-workers", "j", "nw"), ("--workers N", "data.workers=")),
    **dict.fromkeys(("patience", "early-stopping", "early-stopping-patience"), ("train.patience=",)),
    **dict.fromkeys(("grad-accum-steps", "accumulate", "accumulation-steps", "nbs"), ("train.accumulate=",)),
    **dict.fromkeys(("ema", "use-ema", "ema-decay"), ("optim.ema_decay=",)),
    "wandb": ("log.wandb=",), "tensorboard": ("log.tensorboard=",), "mosaic": ("data.mosaic_prob=",),
    "d": ("--data DIR", "--device NAME"),
    **dict.fromkeys(
        ("device", "gpu", "gpus", "gpu-ids", "cuda", "cpu"),
        ("--device NAME", "!all devices are used that JAX sees; JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES=0 chooses"),
    ),
    **dict.fromkeys(("iou", "iou-thres", "nms", "agnostic-nms", "iou-threshold", "nms-thresh"), _SUPPRESSION),
    **dict.fromkeys(("dataset", "data-dir", "dataset-dir", "data-path", "dataset-file", "coco-path"), ("--data DIR",)),
    **dict.fromkeys(("format", "f", "target", "include"), ("--to FORMAT", "--format NAME")),
    **dict.fromkeys(("dynamic", "dynamic-batch"), ("--batch dynamic",)),
    **dict.fromkeys(("simplify", "sim", "optimize", "check", "opset"), ("!the graph is simplified anyway",)),
    **dict.fromkeys(("class", "filter-classes", "cls", "filter"), ("--classes NAMES",)),
    **dict.fromkeys(("view-img", "show", "visualize", "view", "plots", "plot"), _SHOWN),
    **dict.fromkeys(("vid-stride", "stride", "frame-skip", "skip"), ("--every N",)),
    **dict.fromkeys(("tracker", "tracking", "persist"), ("--track TRACKER",)),
    **dict.fromkeys(("line", "count", "counter"), ("--count-line X,Y,X,Y",)),
    **dict.fromkeys(("zone", "region", "roi", "polygon"), ("--count-zone X,Y,X,Y,X,Y",)),
    **dict.fromkeys(("slice", "sahi", "tiles", "slices"), ("--tile SIZE",)),
    **dict.fromkeys(("multi-scale", "rect"), ("data.multi_scale_repeat=",)),
    **dict.fromkeys(("local-rank", "nproc-per-node", "master-port", "master-addr"), ("--coordinator ADDRESS:PORT", )),
    **dict.fromkeys(("u", "update", "opts", "override"), ("key=value",)),
    **dict.fromkeys(("force", "overwrite", "exist", "y"), ("--force",)),
    **dict.fromkeys(("time", "max-time", "hours"), ("--max-hours H",)),
    **dict.fromkeys(("num-images", "n-images", "limit"), ("--images N", "--limit N")),
    **dict.fromkeys(("warmup", "iterations", "repeat", "repeats", "n"), ("--runs N", "--rounds N")),
    **dict.fromkeys(("verbose", "v", "quiet", "q"), ("!there is one amount of output; --help shows what there is",)),
}  # fmt: skip

VALUES = {
    "--precision": {
        **dict.fromkeys(("half", "float16", "f16", "16"), "fp16"),
        **dict.fromkeys(("full", "float32", "f32", "32", "single"), "fp32"),
        **dict.fromkeys(("i8", "8", "quantized", "int"), "int8"),
    },
    "--to": {
        **dict.fromkeys(("engine", "trt", "tensor-rt", "tensorrt-rtx"), "tensorrt"),
        **dict.fromkeys(("ov", "xml", "open-vino"), "openvino"),
        **dict.fromkeys(("ort", "onnxruntime"), "onnx"),
    },
    "--task": {
        **dict.fromkeys(("detection", "boxes", "box"), "detect"),
        **dict.fromkeys(("segmentation", "seg", "masks", "instance"), "segment"),
    },
    "--split": {
        **dict.fromkeys(("valid", "validation", "dev", "eval"), "val"),
        **dict.fromkeys(("training",), "train"), **dict.fromkeys(("testing",), "test"),
    },
    "--augment": {**dict.fromkeys(("no", "off", "false", "0"), "none"), **dict.fromkeys(("mosaic", "strong"), "dense")},
}  # fmt: skip
_NOT_OFFERED = {"--to": "is not offered; ONNX runs on most machines, Apple's included: --to onnx"}

# Keys of ``dfine train``, without their section or of others -> what they are here.
KEYS = {
    "lr0": "optim.lr", "lr": "optim.lr", "learning_rate": "optim.lr", "lr_encoder": "optim.backbone_lr",
    "weight_decay": "optim.weight_decay", "optimizer": "optim.optimizer", "cos_lr": "optim.schedule",
    "momentum": "optim.beta1", "warmup_epochs": "optim.warmup_steps", "ema_decay": "optim.ema_decay",
    "seed": "train.seed", "patience": "train.patience", "workers": "data.workers", "num_workers": "data.workers",
    "grad_accum_steps": "train.accumulate", "mosaic": "data.mosaic_prob", "mixup": "data.mixup_prob",
    "fliplr": "data.flip_prob", "flipud": "data.flip_vertical_prob", "degrees": "data.rotation_deg",
    "amp": "model.precision", "multi_scale": "data.multi_scale_repeat", "wandb": "log.wandb",
    "epochs": "--epochs N", "num_epochs": "--epochs N", "batch": "--batch-size N", "batch_size": "--batch-size N",
    "total_batch_size": "--batch-size N", "imgsz": "--size HxW", "size": "--size HxW", "img_size": "--size HxW",
    "data": "--data DIR", "dataset": "--data DIR", "dataset_dir": "--data DIR", "project": "--out DIR",
    "name": "--out DIR", "output_dir": "--out DIR", "weights": "--weights W", "pretrained": "--weights W",
    "resume": "--resume", "task": "--task detect", "model": "RECIPE, the first argument",
}  # fmt: skip

# What to give where a positional argument is missing.
MISSING = {
    "RECIPE": "n is the smallest",
    "MODEL": "such as runs/cells/best or cells.onnx",
    "SOURCE": "an image, folder, video, address or camera number",
}


def command(name: str, known: Collection[str]) -> str:
    """What an unknown command may be, as the end of a sentence."""
    if name == "help":
        return "; dfine --help, dfine COMMAND --help"
    if name.lower() in known:
        return f"; did you mean {name.lower()}?"
    plain = name.lower().lstrip("-")
    if plain in COMMANDS:
        return f"; here it is {COMMANDS[plain]}"
    return near(plain, known)


def option(argument: str, help_text: str, known: Collection[str]) -> str:
    """What an option that a command lacks is called there, as the end of a sentence; empty: nothing is known.

    Args:
      help_text: of the command, where its positional arguments stand.
      known: its options.
    """
    plain = argument.partition("=")[0].lstrip("-").lower().replace("_", "-")
    if f"--{plain}" in known:
        return f"; did you mean --{plain}?"
    for each in OPTIONS.get(plain, ()):
        if each.startswith("!"):
            return f"; {each[1:]}"
        if each.startswith("--") and each.split()[0] in known:
            return f"; here it is {each}"
        if each.isupper() and re.search(rf"(?<![\w-]){each}(?![\w-])", help_text.partition("\n\n")[0]):
            return f"; it is {each}, which stands without an option"
        if each.endswith("=") and "key=value" in help_text.partition("\n\n")[0]:
            return f"; here it is {each}..., without dashes"
        if each == "key=value" and each in help_text:
            return "; write section.key=value, without an option"
    for one in (plain.removesuffix("s"), f"{plain}s"):
        if f"--{one}" in known:
            return f"; did you mean --{one}?"
    return ""


def value(name: str, given: str, message: str) -> str:
    """What a value that an option does not take may be, as the end of a sentence; empty: nothing is known.

    Args:
      message: of argparse, with what the option takes; options of one name take other values in other commands.
    """
    meant = VALUES.get(name, {}).get(given.lower())
    if meant and meant in message:
        return f"{name} {given}: here it is {name} {meant}"
    return f"{name} {given} {_NOT_OFFERED[name]}" if name in _NOT_OFFERED and "openvino" in message else ""


def near(word: str, known: Collection[str]) -> str:
    """Known words that are written alike, as the end of a sentence."""
    close = difflib.get_close_matches(word, list(dict.fromkeys(known)), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def unknown_options(arguments: Sequence[str], known: Collection[str]) -> list[str]:
    """Those of the arguments that are options and not known."""
    dashed = [argument for argument in arguments if re.match(r"--?[a-zA-Z]", argument)]
    return [argument for argument in dashed if argument.partition("=")[0] not in known]
