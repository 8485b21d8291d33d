"""``dfine export``: weights to a file for ONNX Runtime, OpenVINO or TensorRT, checked before it gets its name."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.commands import export_web
from dfine_jax.commands.early import check_size, require_model
from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.converters.gate.data import CheckData
    from dfine_jax.converters.gate.report import GateReport
    from dfine_jax.converters.tensorrt.export import EngineBuilder
    from dfine_jax.families.family import Family
    from dfine_jax.weights.load import LoadedModel

logger = logging.getLogger(__name__)

_SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "tensorrt": ".engine", "web": ""}  # web: a folder


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``export`` to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="weights to ONNX, OpenVINO, TensorRT or a web page, checked against the model",
        description="Writes the file, runs it and compares its detections with the model's; a file beyond the limits "
        "of its precision is refused. The numbers are left beside it (.report.json, .report.txt).",
        epilog="examples:\n"
        "  dfine export runs/cells/best --to onnx --data cells\n"
        "  dfine export dfine-s-coco --to onnx --precision fp16 --batch dynamic --out s.onnx\n"
        "  dfine export runs/cells/best --to onnx --prune 300,100 --data cells\n"
        "  dfine export runs/cells/best --to openvino --precision int8 --data cells --max-ap-drop 0.01\n"
        "  dfine export runs/cells/best --to web --out page\n"
        "  dfine export runs/cells/best --to tensorrt --precision fp16 --batch dynamic --profile 1,4,16",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, weights file or published name")
    parser.add_argument("--to", choices=tuple(_SUFFIX), default="onnx", help="format (default: onnx)")
    parser.add_argument(
        "--out", metavar="PATH", type=Path, help="default: FAMILY-VARIANT-PRECISION with the suffix; of web a folder"
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="default: fp32")
    parser.add_argument("--batch", metavar="N", default="1", help="images per run, or 'dynamic' for any (default: 1)")
    parser.add_argument("--size", metavar="HxW", help="input size (default: the one the model was trained at)")
    parser.add_argument(
        "--graph", choices=("raw", "complete"), default="raw",
        help="raw: logits and boxes (default); complete: labels, scores and boxes in pixels of the original images; "
        "either way with masks, of models that segment",
    )  # fmt: skip
    parser.add_argument(
        "--input", choices=("float32", "uint8"), default="float32",
        help="float32: RGB in [0, 1], channels first (default); uint8: bytes, channels last",
    )  # fmt: skip
    parser.add_argument(
        "--source-size", metavar="HxW",
        help="all pictures have this size, as a camera's have: the graph takes their bytes, channels last, and resizes",
    )  # fmt: skip
    parser.add_argument("--queries", metavar="N", type=int, help="fewer queries than the model was trained with")
    parser.add_argument(
        "--prune", metavar="N,N", help="queries of the first decoder layer, of the second and so on, such as 300,100"
    )
    parser.add_argument("--layers", metavar="N", type=int, help="decoder layers to run, fewer are faster")
    parser.add_argument(
        "--data", metavar="DIR",
        help="compare on these images, and AP too where there are annotations: a folder of images, or all that dfine "
        "evaluate takes (default: generated pictures)",
    )  # fmt: skip
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="of --data (default: val)")
    parser.add_argument(
        "--max-ap-drop", metavar="AP", type=float,
        help="largest accepted loss of AP, such as 0.005, against the model and against the unreduced one",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", metavar="DIR",
        help="images that int8 is calibrated on; of a dataset, its training split (default: --data)",
    )  # fmt: skip
    _add_engine_options(parser)
    export_web.add_options(parser)


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TensorRT")
    group.add_argument(
        "--package", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt",
        help="of NVIDIA that builds the engine (default: tensorrt)",
    )  # fmt: skip
    group.add_argument(
        "--profile", metavar="MIN,OPT,MAX", help="batches of an engine of --batch dynamic (default: 1,1,8)"
    )
    group.add_argument("--timing-cache", metavar="FILE", type=Path, help="keeps kernel times between builds")
    group.add_argument(
        "--build-only", action="store_true",
        help="no GPU here: check the ONNX file the engine is built from; the report says that the engine has not run. "
        "Of web: do not look for a browser",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Export, check and say what was measured."""
    print(export_checked(options).table())
    return 0


def export_checked(options: argparse.Namespace) -> GateReport:
    """Write the file the options ask for, compare it with the model, and give it its name.

    Raises:
      UserError: options that do not fit together, or a file beyond the limits, which is not kept.
    """
    _check_options(options)
    require_model(options.model, exported=False)
    check_size(options.model, options.size)
    from dfine_jax.commands.train_plan import parse_size
    from dfine_jax.converters.gate.data import calibration_sources, open_data
    from dfine_jax.weights.load import load_checkpoint

    batch = None if options.batch == "dynamic" else int(options.batch)
    prune = [int(part) for part in options.prune.split(",")] if options.prune else None
    data = open_data(options.data, options.split)
    data.require_ap(options.max_ap_drop)
    if options.precision == "int8":
        calibration_sources(options.calibration or options.data)
    builder = _builder(options) if options.to == "tensorrt" else None
    loaded = load_checkpoint(options.model)
    size_hw = parse_size(options.size) if options.size else loaded.metadata.input_size_px
    model = loaded.metadata.config.model
    name = f"{model.family}-{model.variant}-{options.precision}{_SUFFIX[options.to]}"
    report = _export(options, loaded, data, builder, size_hw, batch, prune, options.out or Path(name))
    if report.operating_point and report.accuracy is None:
        logger.warning("AP cost of the operating point: not measured; give --data DIR with annotations")
    return report


def _check_options(options: argparse.Namespace) -> None:
    if options.batch != "dynamic" and not (options.batch.isascii() and options.batch.isdigit()):
        raise UserError(f"--batch {options.batch}: give a number or 'dynamic'")
    parts = options.prune.split(",") if options.prune else []
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--prune {options.prune}: give numbers of queries, such as 300,100")
    export_web.check_options(options)
    if options.to != "web" and options.out and options.out.suffix != _SUFFIX[options.to]:
        raise UserError(f"--out {options.out}: files for {options.to} end in {_SUFFIX[options.to]}")
    if options.precision == "int8" and options.to != "openvino":
        raise UserError("int8 is made for OpenVINO; add --to openvino, or take fp16")
    if options.precision == "int8" and not (options.data or options.calibration):
        raise UserError(
            "int8 is calibrated on images like those the model will see; add --data or --calibration with such a folder"
        )
    if options.calibration and options.precision != "int8":
        raise UserError("--calibration is for int8; add --precision int8, or leave it out")
    for option in ("data", "calibration"):
        given = getattr(options, option)
        if given and not given.startswith("tfds:") and not Path(given).exists():
            raise UserError(f"--{option} {given} does not exist")
    engine = {"--profile": options.profile, "--timing-cache": options.timing_cache, "--build-only": options.build_only}
    if options.to == "web":
        engine.pop("--build-only")
    foreign = [name for name, value in engine.items() if value and options.to != "tensorrt"]
    if foreign:
        raise UserError(f"{foreign[0]} is for engines; add --to tensorrt, or leave it out")
    if options.profile and options.batch != "dynamic":
        raise UserError(f"--profile {options.profile} is for engines of any batch; add --batch dynamic")


def _builder(options: argparse.Namespace) -> EngineBuilder:
    """What builds the engine, once it is sure that it can be run, or need not be."""
    from dfine_jax.converters.tensorrt.export import EngineBuilder
    from dfine_jax.serving.backends.tensorrt import require_gpu

    parts = (options.profile or "1,1,8").split(",")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--profile {options.profile}: give smallest, best and largest batch, such as 1,4,16")
    least, best, most = (int(part) for part in parts)
    builder = EngineBuilder(options.package, (least, best, most), options.timing_cache)
    builder.check()
    if not options.build_only:
        try:
            require_gpu(options.package)
        except UserError as error:
            raise UserError(
                f"an engine is checked by running it, which needs a GPU here ({error}); add --build-only and check it "
                "with benchmarks/tensorrt_check.py where the GPU is"
            ) from error
    return builder


def _export(
    options: argparse.Namespace,
    loaded: LoadedModel,
    data: CheckData,
    builder: EngineBuilder | None,
    size_hw: tuple[int, int],
    batch: int | None,
    prune: list[int] | None,
    final: Path,
) -> GateReport:
    from dfine_jax.commands.train_plan import parse_size
    from dfine_jax.converters.gate.gate import check_artefact
    from dfine_jax.converters.gate.staging import release, staging
    from dfine_jax.converters.onnx.export import export_onnx, operating_point, save
    from dfine_jax.evaluation.evaluate import match_categories
    from dfine_jax.families import of
    from dfine_jax.families.family import Reduction
    from dfine_jax.serving.backends.jax_model import JaxBackend

    reduction = Reduction(options.queries, tuple(prune or ()), options.layers)
    given = {key: value for key, value in reduction._asdict().items() if value not in (None, ())}
    model = operating_point(loaded.model, loaded.variables, reduction)
    preprocess, classes = loaded.metadata.preprocess, loaded.metadata.classes
    if data.dataset is not None:
        match_categories(classes.names, data.dataset.classes, options.model, data.name)
    meta = description(options.model, loaded)
    if options.to == "web":
        return export_web.export_folder(options, loaded, meta, data, size_hw, reduction)
    proto = export_onnx(
        loaded.model,
        loaded.variables,
        meta,
        size_hw=size_hw,
        batch=batch,
        precision="fp32" if options.to == "openvino" else options.precision,  # OpenVINO's own types come later
        graph=options.graph,
        input_dtype=options.input,
        source_hw=parse_size(options.source_size, "--source-size") if options.source_size else None,
        reduction=reduction,
    )
    with staging(final) as staged, tempfile.TemporaryDirectory() as folder:
        source = staged if options.to == "onnx" else Path(folder) / f"{staged.stem}.onnx"
        save(proto, source)
        quantization = _convert(options, data, builder, of(loaded.metadata.config.model), source, staged)
        report = check_artefact(
            source if options.build_only else staged,
            model,
            loaded.variables,
            classes=classes,
            preprocess=preprocess,
            baseline=JaxBackend(loaded.model, loaded.variables, preprocess.scale).predict if given else None,
            data=data,
            max_ap_drop=options.max_ap_drop,
            operating_point=given,
            quantization=quantization,
        )
        if options.build_only:
            report = _of_engine(report, staged, options.package)
        release(staged, final, report)
    return report


def _convert(
    options: argparse.Namespace,
    data: CheckData,
    builder: EngineBuilder | None,
    family: Family[Any, Any, Any, Any],
    source: Path,
    staged: Path,
) -> dict[str, Any]:
    """The ONNX file in the format asked for; what int8 cost."""
    if builder is not None:
        builder.build(source, staged)
    elif options.precision == "int8":
        from dfine_jax.converters.openvino.export import Quantization, export_int8

        drop = {} if options.max_ap_drop is None else {"max_drop": options.max_ap_drop}
        kind = {"is_transformer": family.is_transformer}
        asked = Quantization(options.calibration or options.data, data.dataset, **drop, **kind)
        result = export_int8(source, staged, asked)
        return {name: value for name, value in dataclasses.asdict(result).items() if value is not None}
    elif options.to == "openvino":
        from dfine_jax.converters.openvino.export import export_openvino

        export_openvino(source, staged, options.precision)
    return {}


def _of_engine(report: GateReport, engine: Path, package: str) -> GateReport:
    """The report on an ONNX file as one on the engine that was built from it."""
    from dfine_jax.system.files import sha256

    not_run = (
        f"built by {package} and not run: all numbers are those of the ONNX file it was built from; where the GPU is, "
        "run python benchmarks/tensorrt_check.py MODEL --engine ENGINE"
    )
    return dataclasses.replace(report, file=engine.name, sha256=sha256(engine), not_run=not_run)


def description(source: str, loaded: LoadedModel) -> dict[str, Any]:
    """What an exported file says about the model it was made from (``meta`` of ``export_onnx``)."""
    metadata = loaded.metadata
    origin = {"source_file": metadata.source_file, "source_sha256": metadata.source_sha256}
    return {
        "class_names": metadata.class_names,
        "category_ids": metadata.category_ids,
        "preprocess": metadata.preprocess,
        "source": {"file": str(source), "weights_sha256": _sha256(loaded.variables), **origin},
        "licence": metadata.licence,
        "best_threshold": metadata.best_threshold,
    }


def _sha256(variables: Any) -> str:
    """Of all weights, in the order of their names."""
    import jax
    import numpy as np

    digest = hashlib.sha256()
    for path, leaf in sorted((jax.tree_util.keystr(p), x) for p, x in jax.tree_util.tree_leaves_with_path(variables)):
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
