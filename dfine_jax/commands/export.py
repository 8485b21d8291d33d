"""``dfine export``: weights to a file for ONNX Runtime, OpenVINO or TensorRT, checked before it gets its name."""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from converters.gate_report import Report
    from dfine_jax.weights import LoadedModel

_SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "tensorrt": ".engine"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``export`` to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="weights to ONNX, OpenVINO or TensorRT, checked against the model",
        description="Writes the file, runs it and compares its detections with the model's; a file beyond the limits "
        "of its precision is refused. The numbers are left beside it (.report.json, .report.txt).",
        epilog="examples:\n"
        "  dfine export runs/cells/best --to onnx --data cells\n"
        "  dfine export dfine-s-coco --to onnx --precision fp16 --batch dynamic --out s.onnx\n"
        "  dfine export runs/cells/best --to onnx --prune 300,100 --data cells",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, weights file or published name")
    parser.add_argument("--to", choices=tuple(_SUFFIX), default="onnx", help="format (default: onnx)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: dfine-VARIANT-PRECISION with the suffix")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help="default: fp32")
    parser.add_argument("--batch", metavar="N", default="1", help="images per run, or 'dynamic' for any (default: 1)")
    parser.add_argument("--size", metavar="HxW", help="input size (default: the one the model was trained at)")
    parser.add_argument(
        "--graph", choices=("raw", "complete"), default="raw",
        help="raw: logits and boxes (default); complete: labels, scores and boxes in pixels of the original images",
    )  # fmt: skip
    parser.add_argument(
        "--input", choices=("float32", "uint8"), default="float32",
        help="float32: RGB in [0, 1], channels first (default); uint8: bytes, channels last",
    )  # fmt: skip
    parser.add_argument("--queries", metavar="N", type=int, help="fewer queries than the model was trained with")
    parser.add_argument(
        "--prune", metavar="N,N", help="queries of the first decoder layer, of the second and so on, such as 300,100"
    )
    parser.add_argument("--layers", metavar="N", type=int, help="decoder layers to run, fewer are faster")
    parser.add_argument(
        "--data", metavar="DIR",
        help="compare on these images, and AP too where there are annotations (default: generated pictures)",
    )  # fmt: skip
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="of --data (default: val)")
    parser.add_argument(
        "--package", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt",
        help="of NVIDIA that builds the engine (default: tensorrt)",
    )  # fmt: skip
    parser.add_argument("--max-ap-drop", metavar="AP", type=float, help="largest accepted loss of AP, such as 0.005")


def run(options: argparse.Namespace) -> int:
    """Export, check and say what was measured."""
    print(export_checked(options).table())
    return 0


def export_checked(options: argparse.Namespace) -> Report:
    """Write the file the options ask for, compare it with the model, and give it its name.

    Raises:
      UserError: options that do not fit together, or a file beyond the limits, which is not kept.
    """
    _check_options(options)
    from dfine_jax.commands.train import parse_size
    from dfine_jax.weights import load_checkpoint

    batch = None if options.batch == "dynamic" else int(options.batch)
    prune = [int(part) for part in options.prune.split(",")] if options.prune else None
    loaded = load_checkpoint(options.model)
    size_hw = parse_size(options.size) if options.size else loaded.metadata.input_size_px
    name = f"dfine-{loaded.model.config.variant}-{options.precision}{_SUFFIX[options.to]}"
    return _export(options, loaded, size_hw, batch, prune, options.out or Path(name))


def _check_options(options: argparse.Namespace) -> None:
    if options.batch != "dynamic" and not (options.batch.isascii() and options.batch.isdigit()):
        raise UserError(f"--batch {options.batch}: give a number or 'dynamic'")
    parts = options.prune.split(",") if options.prune else []
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--prune {options.prune}: give numbers of queries, such as 300,100")
    if options.out and options.out.suffix != _SUFFIX[options.to]:
        raise UserError(f"--out {options.out}: files for {options.to} end in {_SUFFIX[options.to]}")
    if options.precision == "int8" and options.to != "openvino":
        raise UserError("int8 is made for OpenVINO; add --to openvino, or take fp16")
    if options.precision == "int8" and not options.data:
        raise UserError("int8 is calibrated on images like those the model will see; add --data with such a folder")
    if options.data and not options.data.startswith("tfds:") and not Path(options.data).exists():
        raise UserError(f"--data {options.data} does not exist")


def _export(
    options: argparse.Namespace,
    loaded: LoadedModel,
    size_hw: tuple[int, int],
    batch: int | None,
    prune: list[int] | None,
    final: Path,
) -> Report:
    from converters.gate import check_artefact, release, staging
    from converters.onnx_export import export_onnx, operating_point
    from dfine_jax.backends.jax_model import JaxBackend
    from dfine_jax.evaluate import ClassList

    reduced = {"num_queries": options.queries, "prune": prune, "layers": options.layers}
    given = {key: value for key, value in reduced.items() if value is not None}
    model = operating_point(loaded.model, loaded.variables, **reduced)
    proto = export_onnx(
        loaded.model,
        loaded.variables,
        _description(options.model, loaded),
        size_hw=size_hw,
        batch=batch,
        precision="fp32" if options.to == "openvino" else options.precision,  # OpenVINO's own types come later
        graph=options.graph,
        input_dtype=options.input,
        **reduced,
    )
    classes = ClassList(loaded.metadata.class_names, loaded.metadata.category_ids)
    with staging(final) as staged:
        _write(options, proto, staged)
        report = check_artefact(
            staged,
            model,
            loaded.variables,
            classes=classes,
            preprocess=loaded.metadata.preprocess,
            baseline=JaxBackend(loaded.model, loaded.variables).predict if given else None,
            data=options.data,
            split=options.split,
            max_ap_drop=options.max_ap_drop,
            operating_point=given,
        )
        release(staged, final, report)
    return report


def _write(options: argparse.Namespace, proto: Any, staged: Path) -> None:
    """The graph in the format asked for."""
    from converters.onnx_export import save

    if options.to == "onnx":
        save(proto, staged)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{staged.stem}.onnx"
        save(proto, source)
        if options.to == "tensorrt":
            from converters.tensorrt_export import EngineBuilder

            EngineBuilder(package=options.package).build(source, staged)
        elif options.precision == "int8":
            _quantize(options, source, staged)
        else:
            from converters.openvino_export import export_openvino

            export_openvino(source, staged, options.precision)


def _quantize(options: argparse.Namespace, source: Path, staged: Path) -> None:
    from converters.gate import annotated
    from converters.openvino_export import Quantization, export_int8

    data = options.data if annotated(options.data, options.split) else None
    drop = {} if options.max_ap_drop is None else {"max_drop": options.max_ap_drop}
    export_int8(source, staged, Quantization(Path(options.data), data, options.split, **drop))


def _description(source: str, loaded: LoadedModel) -> dict[str, Any]:
    metadata = loaded.metadata
    return {
        "class_names": metadata.class_names,
        "category_ids": metadata.category_ids,
        "preprocess": metadata.preprocess,
        "source": {"file": str(source), "sha256": _sha256(loaded.variables), "trained_from": metadata.source_file},
        "licence": metadata.licence,
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
