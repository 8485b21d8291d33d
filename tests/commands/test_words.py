"""Words of other programs and early mistakes: the cure in one line, before anything large is loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfine_jax import cli, families
from dfine_jax.commands import words
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.families import light
from dfine_jax.system import config_values
from dfine_jax.training.run.checkpoint import Metadata, metadata_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a dataset, a picture and an exported file that is none."""
    folder = tmp_path_factory.mktemp("world")
    make_shapes_dataset(folder / "cells", num_train=1, num_val=1, size_px=32, seed=0)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "photo.jpg")
    (folder / "m.onnx").write_bytes(b"onnx")
    (folder / "m.tflite").write_bytes(b"x")
    for name, variant in (("checkpoint", "n"), ("checkpoint24", "rfdetr-seg-small")):
        (folder / name).mkdir()
        config = light.plain_config(light.variant(variant))
        metadata = Metadata(config, ("cat", "dog"), (3, 17), "w.pth", "ab" * 32, "Apache-2.0")
        (folder / name / "metadata.json").write_text(metadata_json(metadata))
    return folder


def told(monkeypatch, capsys, folder, line: str) -> str:
    monkeypatch.chdir(folder)
    try:
        status = cli.main(line.split())
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == "" and captured.err.count("\n") == 1, (line, captured)
    return captured.err.removeprefix("dfine: error: ").strip()


TRAIN = "train n --data cells --out r"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("val m", "unknown command 'val'; here it is evaluate (see dfine --help)"),
        ("test", "unknown command 'test'; here it is evaluate"),
        ("detect m", "unknown command 'detect'; here it is predict"),
        ("infer", "here it is predict"),
        ("fit", "here it is train"),
        ("track m.onnx drive.mp4", "unknown command 'track'; here it is predict --track"),
        ("Train", "did you mean train?"),
        ("help", "dfine --help, dfine COMMAND --help"),
        ("predict m photo.jpg --conf .3", "unknown option --conf; here it is --threshold T (see dfine predict --help)"),
        ("predict m photo.jpg --score .3", "here it is --threshold"),
        ("predict m photo.jpg --conf-thres=.3", "unknown option --conf-thres=.3; here it is --threshold"),
        ("predict m photo.jpg --imgsz 640", "unknown option --imgsz; the file has one input size"),
        ("predict --source photo.jpg", "unknown option --source; it is SOURCE, which stands without an option"),
        ("predict --model m --source photo.jpg", "unknown option --model; it is MODEL, which stands without an option"),
        ("predict m photo.jpg --save-txt", "here it is --labels DIR"),
        ("predict m photo.jpg --save-crop", "here it is --crops DIR"),
        ("predict m photo.jpg --project x", "here it is --out DIR"),
        ("predict m photo.jpg --name x", "here it is --out DIR"),
        ("predict m photo.jpg --half", "dfine export --precision fp16"),
        ("predict m photo.jpg --iou .5", "nothing is suppressed afterwards"),
        ("predict m photo.jpg --batch 4", "here it is --batch-size N"),
        ("predict m photo.jpg --vid-stride 4", "here it is --every N"),
        ("predict m photo.jpg --class car", "here it is --classes NAMES"),
        ("export m --imgsz 64", "here it is --size HxW"),
        ("export m --half", "here it is --precision fp16"),
        ("export m --dynamic", "here it is --batch dynamic"),
        ("export m --format onnx", "here it is --to FORMAT"),
        ("export m --to coreml", "--to coreml is not offered; ONNX runs on most machines, Apple's included: --to onnx"),
        ("export m --to engine", "--to engine: here it is --to tensorrt"),
        ("export m --precision half", "--precision half: here it is --precision fp16"),
        ("evaluate m --data cells --split valid", "--split valid: here it is --split val"),
        (f"{TRAIN} --img 640", "here it is --size HxW"),
        (f"{TRAIN} --epoch 3", "here it is --epochs N"),
        (f"{TRAIN} --max_epochs 3", "here it is --epochs N"),
        (f"{TRAIN} --batch_size 3", "unknown option --batch_size; did you mean --batch-size?"),
        (f"{TRAIN} --use-amp", "the precision follows the device"),
        (f"{TRAIN} -r last.pth", "unknown option -r; here it is --resume"),
        (f"{TRAIN} -t last.pth", "unknown option -t; here it is --weights W"),
        (f"{TRAIN} --seed 3", "here it is train.seed=..., without dashes"),
        (f"{TRAIN} --lr 3", "here it is optim.lr=..., without dashes"),
        (f"{TRAIN} --test-only", "dfine evaluate MODEL --data DIR does that"),
        ("train -c dfine.yml --data cells --out r", "unknown option -c; it is RECIPE, which stands without an option"),
        ("train --data cells --out r", "the following arguments are required: RECIPE (n is the smallest)"),
        ("train n --dataset-dir cells --output-dir r", "unknown option --dataset-dir; here it is --data DIR"),
        ("benchmark m --nms", "nothing is suppressed"),
        # what a command does not take, with the reason; keys written as options
        ("evaluate m.onnx --data cells --conf 0.3", "AP ranks all detections, so dfine evaluate takes no threshold"),
        ("evaluate m.onnx --data cells --threshold 0.3", "AP ranks all detections, so dfine evaluate takes no thresh"),
        (f"{TRAIN} --threshold 0.3", "the threshold is chosen when detecting: dfine predict --threshold T"),
        ("export m --threshold 0.3", "the threshold is chosen when detecting: dfine predict --threshold T"),
        ("benchmark m --threshold 0.3", "the threshold is chosen when detecting: dfine predict --threshold T"),
        ("predict m.onnx photo.jpg --topk 5", "the best detections are kept, as many as the model has"),
        ("predict m.onnx photo.jpg --max-det 5", "--threshold T of dfine predict leaves fewer"),
        ("predict m.onnx photo.jpg --save-conf", "scores are in --json FILE, and in --results FILE.csv"),
        (f"{TRAIN} --freeze 10", "unknown option --freeze; here it is optim.freeze='[\"^backbone/\"]'"),
        (f"{TRAIN} --cache", "pictures are not cached; data.workers=N reads with more"),
        (f"{TRAIN} --warmup-epochs 3", "here it is optim.warmup_steps=STEPS, counted in steps"),
        (f"{TRAIN} --dropout .1", "these networks have no dropout; data.dropout_prob=P"),
        (f"{TRAIN} --save-period 5", "here it is train.checkpoint_every=EPOCHS"),
        (f"{TRAIN} --mixup .1", "here it is data.mixup_prob=..., without dashes"),
        (f"{TRAIN} --close-mosaic 10", "here it is data.stop_mosaic_epoch=EPOCH, counted from the first one"),
        (f"{TRAIN} --rect", "dfine train has --size HxW and data.resize=letterbox for it"),
        (f"{TRAIN} --epcohs 3", "unknown option --epcohs; did you mean --epochs?"),
        (f"{TRAIN} --nothing-like-it", "unknown option --nothing-like-it (see dfine train --help)"),
        ("export m --calib cells", "did you mean --calibration?"),
        ("convert m w --lr 3", "unknown option --lr (see dfine convert --help)"),
        # words of other programs' command lines without dashes
        ("predict m.onnx photo.jpg conf=0.3", "unexpected argument 'conf=0.3'; here it is --threshold T (see dfine p"),
        ("predict m.onnx source=photo.jpg", "unexpected argument 'source=photo.jpg'; it is SOURCE, write photo.jpg al"),
        ("export n format=onnx", "unexpected argument 'format=onnx'; here it is --to FORMAT"),
        ("evaluate m.onnx --data cells imgsz=640", "unexpected argument 'imgsz=640'; here it is --size HxW"),
        ("serve m.onnx port=80", "unexpected argument 'port=80'; did you mean --port?"),
        ("train data=cells epochs=3", "unexpected argument 'data=cells'; here it is --data DIR"),
        ("train --data cells --out r epochs=3", "unexpected argument 'epochs=3'; here it is --epochs N"),
        (f"{TRAIN} conf=0.3", "unknown configuration key 'conf'; the threshold is chosen when detecting: dfine pr"),
        ("export m --conf 0.3", "unknown option --conf; the threshold is chosen when detecting: dfine predict --t"),
        ("check --data cells copy_paste=0.1", "that is not offered; data.augment=dense adds mosaic and MixUp"),
        # what was turned off stays so
        (f"{TRAIN} amp=False", "unknown configuration key 'amp'; here it is model.precision=float32 (see"),
        (f"{TRAIN} amp=True", "here it is model.precision=bfloat16"),
        (f"{TRAIN} --amp=False", "here it is model.precision=float32"),
        (f"{TRAIN} cos_lr=False", "unknown configuration key 'cos_lr'; leave it out (see"),
        (f"{TRAIN} cos_lr=0", "leave it out"),
        (f"{TRAIN} multi_scale=0", "here it is data.multi_scale_repeat=0 (see"),
        (f"{TRAIN} multi_scale=0.0", "here it is data.multi_scale_repeat=0 (see"),
        (f"{TRAIN} pretrained=False", "unknown configuration key 'pretrained'; leave it out"),
        (f"{TRAIN} resume=None", "leave it out"),
        (f"{TRAIN} mosaic=off", "here it is data.mosaic_prob=0"),
        (f"{TRAIN} tensorboard=True", "here it is log.tensorboard=true"),
        (f"{TRAIN} workers=0", "here it is data.workers=0"),
        (f"{TRAIN} task=segment", "unknown configuration key 'task'; here it is --task segment (see"),
        (f"{TRAIN} task=Detection", "here it is --task detect (see"),
        (f"{TRAIN} task=pose", "here it is --task detect, or --task segment"),
        ("export n half=False", "unexpected argument 'half=False'; leave it out"),
        ("export n dynamic=False", "unexpected argument 'dynamic=False'; leave it out"),
        ("predict m.onnx photo.jpg save_txt=False", "leave it out"),
        ("predict m.onnx source=0", "it is SOURCE, write 0 alone"),
        (f"{TRAIN} freeze=10", "unknown configuration key 'freeze'; here it is optim.freeze='[\"^backbone/\"]'"),
        ("detect train data=cells", "unknown command 'detect'; write dfine train, without detect (see"),
        ("detect val model=m", "unknown command 'detect'; write dfine evaluate, without detect"),
        ("segment train data=cells", "write dfine train, without segment (masks: --task segment)"),
        ("segment predict source=photo.jpg", "write dfine predict, without segment (see"),
        # of dfine-seg, with its sections, and of masks
        (f"{TRAIN} train.freeze_except_mask=True", "here it is optim.freeze='[\"^(backbone|encoder)/\", \"^decoder/(?"),
        (f"{TRAIN} train.freeze_except_mask=False", "leave it out"),
        (f"{TRAIN} train.decision_metrics=[f1]", "here it is train.best_by=masks, or boxes: their AP decides"),
        (f"{TRAIN} mask_ratio=4", "key 'mask_ratio'; how coarse masks are follows from the model"),
        (f"{TRAIN} train.clip_max_norm=0.1", "here it is optim.clip_norm=0.1"),
        (f"{TRAIN} --task sem_seg", "--task sem_seg: classes of pixels are not segmented here, only objects are: --ta"),
        (f"{TRAIN} task=sem_seg", "key 'task'; classes of pixels are not segmented here"),
        ("predict m.onnx photo.jpg --apply-nms", "unknown option --apply-nms; nothing is suppressed afterwards"),
        ("errors m.onnx --data cells --out e --iou-type segm", "unknown option --iou-type; here it is --by KIND"),
        ("evaluate m.onnx --data cells --iou-type segm", "dfine evaluate judges boxes and, where model and data ha"),
        # what is not there, or of another kind
        ("convert checkpoint w.onnx", "convert writes no .onnx files; dfine export checkpoint --to onnx --out w.onnx"),
        ("convert checkpoint w.XML", "dfine export checkpoint --to openvino --out w.XML does"),
        ("convert checkpoint w.tflite", "w.tflite: dfine convert writes a checkpoint folder, or a .pth, .pt or .safe"),
        (f"{TRAIN} --weights ArgoSA/D-FINE-seg", "ArgoSA/D-FINE-seg: its weights have names of their own here: dfine-"),
        ("predict hf:ArgoSA/D-FINE-seg photo.jpg", "dfine-seg-s-coco, dfine-seg-m-coco"),
        ("predict photo.jpg m.onnx", "photo.jpg is a picture and no model; the model comes first"),
        ("predict model=m.onnx photo.jpg", "unexpected argument 'model=m.onnx'; it is MODEL, write m.onnx alone"),
        ("predict dfine-n photo.jpg", "dfine-n does not exist; did you mean dfine-n-coco?"),
        ("predict n photo.jpg", "n does not exist; did you mean dfine-n-coco?"),
        ("predict dfine_n_coco.pth photo.jpg", "did you mean dfine-n-coco?"),
        ("predict best.onnx photo.jpg", "best.onnx does not exist; dfine export writes one"),
        ("predict m.tflite photo.jpg", "m.tflite is of a kind that cannot be run here (.tflite)"),
        ("predict m.onnx photo.jpg --json r.csv", "--json r.csv would hold JSON; name it .json"),
        ("evaluate m.onnx --data cells --json ev.csv", "--json ev.csv would hold JSON; name it .json"),
        ("predict m.onnx photo.jpg --threshold 30", "--threshold 30 must lie between 0 and 1"),
        ("export m.onnx", "m.onnx is exported already; give the checkpoint or weights that it was made from"),
        ("convert m.onnx w", "m.onnx is exported already"),
        ("export runs/nosuch", "runs/nosuch does not exist; expected a checkpoint folder"),
        ("evaluate nosuch --data cells", "nosuch does not exist"),
        ("errors nosuch --data cells --out e", "nosuch does not exist"),
        ("evaluate m.onnx --data cels", "data folder cels does not exist; did you mean cells?"),
        ("check --data cels", "did you mean cells?"),
        ("data convert --data cels --to yolo --out y", "did you mean cells?"),
        ("check --data cells/annotations", "cells/annotations is a part of a dataset; give the folder above it, cells"),
        ("benchmark m.onnx@openvin", "m.onnx@openvin: 'openvin' is none of onnxruntime, openvino, tensorrt; did you"),
        ("benchmark nosuch@openvino", "nosuch does not exist"),
        ("train nosuch --data cells --out r", "unknown recipe 'nosuch'; choose one of n, s,"),
        ("train dfine-n-coco --data cells --out r", "the recipe is n, these are weights to start from: n --weights df"),
        ("train rtdetr-r18 --data cells --out r", "did you mean rtdetrv2-r18"),
        ("train n.py --data cells --out r", "n.py does not exist; give a variant such as n"),
        ("train n --data cells --out r --size 300", "sides must be multiples of 32; 288x288 is the nearest"),
        ("train rfdetr-seg-small --data cells --out r --size 300", "sides must be multiples of 24; 288x288 is"),
        ("train rfdetr-nano --data cells --out r --size 300", "sides must be multiples of 32; 288x288 is"),
        ("train rfdetr-small --task segment --data cells --out r --size 300", "sides must be multiples of 24; 288x288"),
        ("train rfdetr-nano --data cells --out r --size 300 model.windows=1", "sides must be multiples of 16; 304x304"),
        ("export dfine-n-coco --size 300", "--size 300x300: sides must be multiples of 32; 288x288 is the nearest"),
        ("export dfine-seg-n-coco --size 300", "sides must be multiples of 32; 288x288 is the nearest"),
        ("export rfdetr-seg-nano-coco --size 300x320", "sides must be multiples of 12; 300x324 is the nearest"),
        ("export checkpoint --size 300", "sides must be multiples of 32; 288x288 is the nearest"),
        ("export checkpoint24 --size 300 --to web", "sides must be multiples of 24; 288x288 is the nearest"),
        ("evaluate checkpoint --data cells --size 300", "sides must be multiples of 32; 288x288 is the nearest"),
        ("evaluate dfine-n-coco --data cells --size 0", "sides must be multiples of 32; 32x32 is the nearest"),
        ("evaluate m.onnx --data cells --size 320", "m.onnx has one input size; export the model with --size"),
        ("evaluate m.onnx --data cells --size wide", "--size wide: write height x width in pixels"),
        ("errors checkpoint --data cells --out e --size 300", "sides must be multiples of 32"),
        ("train n --data cells --out r lr0=1", "unknown configuration key 'lr0'; here it is optim.lr=1"),
        ("train n --data cells --out r epochs=3", "unknown configuration key 'epochs'; here it is --epochs N"),
        ("train n --data cells --out r optim.lrr=1", "unknown configuration key 'optim.lrr'; did you mean optim.lr"),
        ("train n --data cells --out r optim.lr=high", "optim.lr='high' must be of type float"),
        ("train n --data cells --out r --weights nosuch", "nosuch does not exist"),
        ("train n --data cells --out r --weights m.onnx", "m.onnx is exported already"),
        ("train n --data cells --out r --resume", "--resume: r does not exist, so there is no run to continue"),
    ],
)  # fmt: skip
def test_the_cure_is_told(monkeypatch, capsys, world, line, message):
    assert message in told(monkeypatch, capsys, world, line)


def test_a_folder_of_the_name_of_a_task_is_what_is_detected_in(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert words.command("detect", cli.COMMANDS, "val") == "; write dfine evaluate, without detect"
    (tmp_path / "val").mkdir()
    assert words.command("detect", cli.COMMANDS, "val") == "; here it is predict"


@pytest.mark.parametrize("out", ["iou=0.5.pth", "model=n.pth", "conf=0.3"])
def test_a_file_that_is_written_may_have_any_name(out):
    parser = command_parser("convert")
    parser.check_words(parser.parse_intermixed_args(["best", out]))


def test_early_mistakes_load_neither_jax_nor_numpy(world):
    code = (
        "import sys\nfrom dfine_jax import cli\n"
        "try: status = cli.main(sys.argv[1:])\nexcept SystemExit as stop: status = stop.code\n"
        "print(status, [name for name in ('jax', 'numpy', 'scipy', 'PIL', 'yaml', 'tqdm') if name in sys.modules])"
    )
    for line in (
        "train nosuch --data cells --out r",
        "train n --data nosuch --out r",
        "train n --data cells --out r --size 300",
        "train rfdetr-nano --data cells --out r --size 300",
        "train n --data cells --out r lr0=1",
        "train n --data cells --out r --weights dfine-n",
        "train n --data cells --out r --resume",
        "evaluate nosuch --data cells",
        "predict nosuch photo.jpg",
        "export nosuch",
        "export dfine-n-coco --size 300",
        "export checkpoint --size 300",
        "evaluate dfine-n-coco --data cells --size 300",
        "evaluate checkpoint24 --data cells --size 300",
        "evaluate m.onnx --data cells --conf 0.3",
        "predict m.onnx photo.jpg conf=0.3",
        "convert nosuch w",
        "errors nosuch --data cells --out e",
        "benchmark nosuch",
        "check --data nosuch",
        "val",
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *line.split()], cwd=world, capture_output=True, text=True, check=False,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        assert done.stdout == "2 []\n", (line, done.stdout, done.stderr)


def test_what_is_known_without_networks_is_what_the_families_say():
    assert light.published() == tuple(families.published())
    assert light.recipes() == tuple(families.recipes())
    for name in light.recipes():
        own, variant = families.of_recipe(name)
        assert light.variant(name) == own.variants[variant]
        assert light.grid_px(light.variant(name)) in (None, own.grid_px(own.variants[variant]))
        assert type(light.plain_config(light.variant(name)).loss) is own.Loss


def test_every_published_name_tells_what_sizes_its_weights_take(tmp_path):
    grids = {name: light.grid_of_weights(name) for name in light.published()}
    assert None not in grids.values() and set(grids.values()) > {32, 24}
    assert grids["rfdetr-seg-preview-coco"] == 24 and grids["rfdetr-base-2-coco"] == 56
    for recipe in light.recipes():
        own, variant = families.of_recipe(recipe)
        if (name := f"{own.name}-{variant}-coco") in grids:
            assert grids[name] == own.grid_px(own.variants[variant])
    (tmp_path / "metadata.json").write_text('{"format": 2, "config": {"model": {"family": "none"}}}')
    assert light.grid_of_weights(tmp_path) is light.grid_of_weights(tmp_path / "w.pth") is None


def test_words_lead_to_what_there_is():
    assert {here.split()[0] for here in words.COMMANDS.values()} <= set(cli.COMMANDS)
    assert not set(words.COMMANDS) & set(cli.COMMANDS)
    configs = [light.plain_config(light.variant(recipe)) for recipe in light.recipes()]
    cures = [*words.KEYS.values(), *(each for several in words.OPTIONS.values() for each in several)]
    cures += words.OFF.values()
    told = [found for cure in cures for found in re.findall(r"\b(model|loss|optim|data|train|log)\.(\w+)", cure)]
    assert len(told) > 60
    for assignment in words.OFF.values():
        config_values.override(configs[0], [assignment])
    for section, name in told:
        assert any(hasattr(getattr(config, section), name) for config in configs), (section, name)


def test_options_of_cures_exist():
    cures = [cure.removeprefix("!") for cure in words.KEYS.values()]
    cures += [cure for several in words.OPTIONS.values() for cure in several]
    cures += words.OFF.values()
    known = {each for name in cli.COMMANDS for each in command_parser(name)._option_string_actions}
    for cure in cures:
        assert set(re.findall(r"--[a-z][\w-]*", cure)) <= known, cure


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_cure_is_one_for_its_command(name):
    parser = command_parser(name)
    usage, known = parser.format_usage(), list(parser._option_string_actions)
    told = 0
    for word in (*words.OPTIONS, *words.KEYS):
        for argument in (f"--{word}", f"{word}=3", f"{word}=False"):
            cure = words.option(argument, usage, known)
            told += bool(cure)
            of_itself = "; ".join(part for part in cure.split(";") if "dfine " not in part)
            assert set(re.findall(r"--[a-z][\w-]*", of_itself)) <= set(known), (argument, cure)
            assert set(re.findall(r"\b(?:MODEL|SOURCE|RECIPE|CHECKPOINT)\b", of_itself)) <= set(usage.split()), cure
            if re.search(r"\b(?:model|optim|data|train|log)\.\w", of_itself):
                assert "key=value" in usage, (argument, cure)
            for other in re.findall(r"dfine ([a-z]+)", cure):
                of_other = "".join(part for part in cure.split(";") if f"dfine {other}" in part)
                options = command_parser(other)._option_string_actions
                assert set(re.findall(r"--[a-z][\w-]*", of_other)) <= set(options), (argument, cure)
    assert told > 20


def command_parser(name):
    parsers = cli.Parser(prog="dfine").add_subparsers(parser_class=cli.Parser)
    cli._command(name).add_parser(parsers)
    return parsers.choices[name]


def test_what_is_there_is_no_option_of_another_program(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = ["conf=0.3", "photo.jpg", "https://host/photo?a=b", "optim.lr=1", None]
    assert words.assignments(given) == ["conf=0.3"]
    (tmp_path / "conf=0.3").touch()
    assert words.assignments(given) == []
