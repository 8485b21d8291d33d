"""Words that people bring from other programs, and what they are here: commands, options, values, keys.

From Ultralytics, YOLOv5, RF-DETR, dfine-seg, the official programs of the families, and from what is usual elsewhere.
"""

from __future__ import annotations

COMMANDS = {
    **dict.fromkeys(("val", "test", "eval", "validate", "validation", "score", "metrics"), "evaluate"),
    **dict.fromkeys(("detect", "infer", "inference", "segment", "run", "demo.py", "visualize"), "predict"),
    "track": "predict --track",
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
# (``optim.lr=``, of commands that take keys); or a sentence, after "!", and before that the command that alone has it.
# A part of a sentence that names another command speaks of its options, the others of those of the command itself.
_THRESHOLD = (
    "--threshold T",
    "evaluate!AP ranks all detections, so dfine evaluate takes no threshold and names the best",
    "!the threshold is chosen when detecting: dfine predict --threshold T",
)
_OUT, _SIZE = ("--out DIR", "--json FILE"), ("--size HxW", "!the file has one input size")
_SOURCE = ("SOURCE", "--data DIR")
_MODEL = ("MODEL", "--weights W", "CHECKPOINT")
_AMP = ("!the precision follows the device, float32 on CPU and bfloat16 elsewhere; dfine train sets model.precision",)
_HALF = ("--precision fp16", "!the precision is chosen when exporting: dfine export --precision fp16")
_SUPPRESSION = ("!nothing is suppressed afterwards, the model answers with each object once",)
_SHOWN = ("!pictures and videos are written, --out DIR says where",)
_MOST = ("!the best detections are kept, as many as the model has; --threshold T of dfine predict leaves fewer",)
_STYLE = ("!lines and letters follow the size of the picture; dfine predict --font FILE is all that can be chosen",)
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
    **dict.fromkeys(("amp", "use-amp", "mixed-precision", "bf16"), _AMP), "fp32": ("--precision fp32", *_AMP),
    **dict.fromkeys(("epoch", "e", "max-epochs", "num-epochs", "n-epochs", "epoches"), ("--epochs N",)),
    **dict.fromkeys(("c", "config", "cfg", "yaml", "recipe", "variant"), ("RECIPE", "MODEL", "CHECKPOINT")),
    **dict.fromkeys(("r", "resume-from", "resume-path"), ("--resume", "MODEL", "CHECKPOINT")),
    **dict.fromkeys(
        ("t", "tuning", "finetune", "pretrained", "pretrain", "pretrain-weights", "load"), ("--weights W", "MODEL")
    ),
    **dict.fromkeys(("test-only", "val-only", "eval", "eval-only"), ("!dfine evaluate MODEL --data DIR does that",)),
    "seed": ("train.seed=",),
    "threshold": _THRESHOLD,
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
    "apply-nms": _SUPPRESSION,
    "iou-type": ("--by KIND", "!dfine evaluate judges boxes and, where model and data have any, masks"),
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
    "rect": ("!pictures have one input size; dfine train has --size HxW and data.resize=letterbox for it",),
    **dict.fromkeys(("topk", "top-k", "max-det", "max-dets", "num-top", "num-select", "max-detections"), _MOST),
    **dict.fromkeys(("save-conf", "save-scores"), ("!scores are in --json FILE, and in --results FILE.csv",)),
    **dict.fromkeys(("line-width", "line-thickness", "hide-labels", "hide-conf", "show-labels", "show-conf"), _STYLE),
    "nosave": ("!nothing is drawn where another output is asked for, such as --json FILE",),
    "augment": ("data.augment=", "!a picture is seen once; --tile SIZE of dfine predict finds small objects",),
    "retina-masks": ("!masks have the size of the picture anyway",),
    "save-frames": ("!dfine predict draws videos; --every N takes each Nth frame, --crops DIR writes the objects",),
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
# Values that stand for something that there is not.
NOT_THERE: dict[str, dict[str, str]] = {
    "--task": dict.fromkeys(
        ("sem_seg", "semseg", "sem-seg", "semantic", "semantic_segmentation", "semantic-segmentation", "panoptic"),
        "classes of pixels are not segmented here, only objects are: --task segment",
    ),
}
NOT_OFFERED = {"--to": "is not offered; ONNX runs on most machines, Apple's included: --to onnx"}

# Keys of ``dfine train``, without their section or of others -> what they are here: a key that takes the same value; an
# assignment, option or argument that takes another one; or a sentence, after "!".
_WARMUP = "optim.warmup_steps=STEPS, counted in steps"
_FREEZE = "optim.freeze='[\"^backbone/\"]', regular expressions of what to hold"
_DENSE = "!that is not offered; data.augment=dense adds mosaic and MixUp"
_COLOURS = "!colours are distorted together, with the probability data.photometric_prob"
_DROPOUT = "!these networks have no dropout; data.dropout_prob=P blacks out parts, some variants have model.drop_path=P"
_MASKS_ALONE = """optim.freeze='["^(backbone|encoder)/", "^decoder/(?!mask_)"]'"""
_SAVED = "train.checkpoint_every=EPOCHS, of last; best is kept whenever it is better"
KEYS = {
    **dict.fromkeys(("lr0", "lr", "learning_rate", "base_lr"), "optim.lr"),
    **dict.fromkeys(("lr_encoder", "lr_backbone", "backbone_lr"), "optim.backbone_lr"),
    **dict.fromkeys(("weight_decay", "wd"), "optim.weight_decay"),
    "optimizer": "optim.optimizer", "momentum": "optim.beta1", "ema_decay": "optim.ema_decay",
    "cos_lr": "optim.schedule=cosine", "lr_scheduler": "optim.schedule=NAME", "lrf": "optim.min_lr_ratio",
    **dict.fromkeys(("lr_drop", "drop_epoch"), "optim.drop_epoch=EPOCH"),
    **dict.fromkeys(("warmup", "warmup_epochs", "warmup_iters", "warmup_steps", "warmup_duration"), _WARMUP),
    **dict.fromkeys(("freeze", "freeze_layers", "freeze_encoder", "freeze_backbone"), _FREEZE),
    "freeze_except_mask": _MASKS_ALONE,
    "decision_metrics": "train.best_by=masks, or boxes: their AP decides what is best",
    "mask_ratio": "!how coarse masks are follows from the model, for most a quarter of the input",
    "overlap_mask": "!each object has a mask of its own",
    **dict.fromkeys(("grad_clip", "clip_grad", "clip_max_norm", "clip_norm"), "optim.clip_norm"),
    "seed": "train.seed", "patience": "train.patience",
    "deterministic": "!random numbers follow from train.seed alone; nothing else is to be set",
    **dict.fromkeys(("workers", "num_workers"), "data.workers"),
    **dict.fromkeys(("cache", "cache_images", "cache_ram"), "!pictures are not cached; data.workers=N reads with more"),
    **dict.fromkeys(("grad_accum_steps", "accumulate"), "train.accumulate"),
    **dict.fromkeys(("gradient_checkpointing", "use_checkpoint"), "train.remat='[\"backbone\"]'"),
    **dict.fromkeys(("save_period", "checkpoint_interval", "checkpoint_freq", "save_interval"), _SAVED),
    **dict.fromkeys(("eval_interval", "eval_freq", "val_interval", "noval"), "train.eval_every=EPOCHS"),
    **dict.fromkeys(("print_freq", "log_interval"), "train.log_every"),
    "mosaic": "data.mosaic_prob", "mixup": "data.mixup_prob",
    "close_mosaic": "data.stop_mosaic_epoch=EPOCH, counted from the first one",
    "no_aug_epoch": "data.stop_augment_epoch=EPOCH, counted from the first one",
    "fliplr": "data.flip_prob", "flipud": "data.flip_vertical_prob",
    "degrees": "data.rotation_deg=DEGREES with data.rotation_prob=P",
    "translate": "data.mosaic_translation", "shear": "data.mosaic_shear_deg",
    "scale": "data.mosaic_scale='[0.5, 1.5]', of mosaics",
    **dict.fromkeys(("hsv_h", "hsv_s", "hsv_v", "color_jitter", "bgr"), _COLOURS),
    **dict.fromkeys(("copy_paste", "cutmix", "auto_augment", "perspective"), _DENSE),
    "erasing": "data.dropout_prob", "dropout": _DROPOUT, "drop_path": "model.drop_path=P, of variants that have it",
    "label_smoothing": "!that is not offered; class targets follow the overlap of box and object already",
    "amp": "model.precision=bfloat16", "multi_scale": "data.multi_scale_repeat=N, such as 3",
    "wandb": "log.wandb=PROJECT", "mlflow": "log.mlflow=EXPERIMENT", "tensorboard": "log.tensorboard",
    "num_queries": "model.num_queries",
    **dict.fromkeys(("nc", "num_classes", "class_names"), "!classes and their names are those of the data"),
    "single_cls": "!classes are those of the data; make them one there",
    "fraction": "!all pictures of the split are used; give a smaller dataset",
    **dict.fromkeys(("epochs", "num_epochs"), "--epochs N"),
    **dict.fromkeys(("batch", "batch_size", "total_batch_size"), "--batch-size N"),
    **dict.fromkeys(("imgsz", "size", "img_size", "resolution"), "--size HxW"),
    **dict.fromkeys(("data", "dataset", "dataset_dir"), "--data DIR"),
    **dict.fromkeys(("project", "name", "output_dir"), "--out DIR"),
    **dict.fromkeys(("weights", "pretrained"), "--weights W"),
    "resume": "--resume", "task": "--task detect, or --task segment", "model": "RECIPE, the first argument",
}  # fmt: skip
# What they are where they were turned off; of the others, and of options, that is so when they are left out.
OFF_WORDS = ("false", "no", "off", "none", "null")
OFF = {
    **dict.fromkeys(("amp", "use_amp", "mixed_precision", "bf16", "half", "fp16"), "model.precision=float32"),
    "multi_scale": "data.multi_scale_repeat=0", "mosaic": "data.mosaic_prob=0", "mixup": "data.mixup_prob=0",
    "fliplr": "data.flip_prob=0", "flipud": "data.flip_vertical_prob=0", "erasing": "data.dropout_prob=0",
    **dict.fromkeys(("hsv_h", "hsv_s", "hsv_v", "color_jitter"), "data.photometric_prob=0"),
    **dict.fromkeys(("warmup", "warmup_epochs", "warmup_iters", "warmup_steps"), "optim.warmup_steps=0"),
    **dict.fromkeys(("patience", "early_stopping", "early_stopping_patience"), "train.patience=0"),
    **dict.fromkeys(("ema", "use_ema", "ema_decay"), "optim.ema_decay=0"),
    "degrees": "data.rotation_prob=0", "augment": "data.augment=none", "tensorboard": "log.tensorboard=false",
    **dict.fromkeys(("plots", "plot"), "log.pictures=0"),
}  # fmt: skip
SWITCHES = {  # 0 turns them off, too
    *OFF, "cos_lr", "pretrained", "resume", "freeze", "single_cls", "cache", "deterministic", "rect", "wandb",
    "mlflow", "copy_paste", "cutmix", "auto_augment", "perspective", "label_smoothing", "dropout", "use_checkpoint",
    "gradient_checkpointing", "freeze_except_mask", "overlap_mask", "apply_nms", "int8", "dynamic",
    "save_txt", "save_json", "save_crop", "save", "save_conf",
}  # fmt: skip
TASKS = ("detect", "segment")
ACTIONS = ("train", "val", "predict", "export", "track", "benchmark")  # the second word of ``yolo detect train``
