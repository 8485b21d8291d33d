"""Exported graphs against transformers' model of the same variant exported by torch.onnx: answers, nodes, size, time.

    python benchmarks/onnx_export.py --variant n
    python benchmarks/onnx_export.py --variant rtdetrv2-r18
    python benchmarks/onnx_export.py --weights nano.pth --peer rfdetr-nano.onnx --size 384 --imagenet

Equal random weights (time does not depend on them). Both are raw graphs for one image: pixels in, logits and boxes out,
no selection of the best behind them. The peer gets what its authors' own export does: convolutions that contain their
normalisation, RepVGG branches merged, nothing of the training left; its file is simplified by ONNX Runtime's basic
optimisations, ours is as exported. A peer's own file can be given, with the weights it was made from; it is simplified
in the same way.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import interleave, peers

COLUMNS = ("Conv", "MatMul", "Gemm", "LayerNormalization", "Gather", "GridSample", "Reshape", "Transpose", "Add", "Mul")
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_peer(recipe: str) -> Any:
    """transformers' model, all of whose parameters are random; the same for equal recipes."""
    import torch

    model = peers.transformers_model(peers.model_config(recipe)).eval()
    with torch.no_grad():  # fresh heads are zeros, which would be stored once
        for name, parameter in model.named_parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
            if name.endswith("stem1.lab.bias"):  # the dearer case: zeros behind the border can win the pooling
                parameter.fill_(-0.1)
    return model


def export_ours(recipe: str, size: int, file: Path, weights: str | None) -> None:
    import onnx

    import dfine_jax
    from dfine_jax.converters.onnx.export import export_onnx

    model: Any
    model, variables = dfine_jax.load(weights) if weights else peers.ours(random_peer(recipe))
    names = [f"class {i}" for i in range(model.config.num_classes)]
    proto = export_onnx(
        model, variables, {"class_names": names, "category_ids": range(len(names))}, size_hw=(size, size)
    )
    onnx.save(proto, file)


def export_peer(recipe: str, size: int, file: Path) -> None:
    import torch

    model = random_peer(recipe)
    peers.merge_branches(model)

    class Raw(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out = self.model(pixel_values=images)
            return out.logits, out.pred_boxes

    unsimplified = file.with_suffix(".raw.onnx")
    torch.onnx.export(
        Raw(),
        (torch.rand(1, 3, size, size),),
        str(unsimplified),
        dynamo=False,
        opset_version=19,
        input_names=["images"],
        output_names=["logits", "boxes"],
    )
    _simplify(unsimplified, file)


def _simplify(source: Path, target: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    # Keeps products with a bias two nodes, as in our file; loading fuses them in both.
    ort.InferenceSession(str(source), options, disabled_optimizers=["MatMulAddFusion"])


def describe(file: Path) -> str:
    import onnx

    nodes = collections.Counter(node.op_type for node in onnx.load(file).graph.node)
    counts = ", ".join(f"{name} {nodes[name]}" for name in COLUMNS if nodes[name])
    return f"{nodes.total()} nodes, {file.stat().st_size / 1e6:.1f} MB ({counts})"


def difference(files: list[Path], size: int, imagenet: bool) -> str:
    """How far the answers to one image are apart, rows paired; peer first.

    Args:
      imagenet: the peer takes pixels of ImageNet's mean and deviation.
    """
    import numpy as np

    from dfine_jax.converters.gate.compare import Rows
    from dfine_jax.ops.postprocess import sigmoid

    answers = [run_onnxruntime(file, 2, i == 0 and imagenet)() for i, file in enumerate(files)]
    boxes = [next(x for x in answer if x.ndim == 3 and x.shape[-1] == 4) for answer in answers]
    logits = [next(x for x in answer if x.ndim == 3 and x.shape[-1] != 4) for answer in answers]
    columns = min(x.shape[-1] for x in logits)
    if len({x.shape[-1] for x in logits}) > 1:  # the peer's rows are COCO's category ids
        from dfine_jax.data.read.coco_names import COCO_CATEGORY_IDS

        logits = [x if x.shape[-1] == columns else x[..., list(COCO_CATEGORY_IDS)] for x in logits]
    sides = [Rows(box[0], sigmoid(np.asarray(x[0]))) for box, x in zip(boxes, logits, strict=True)]
    return apart(sides[0], sides[1], size)


def apart(one: Any, other: Any, size: int) -> str:
    """Differences of paired ``compare.Rows``."""
    import numpy as np

    from dfine_jax.converters.gate.compare import compare_image

    errors = compare_image(one, other, (size, size))
    boxes_px, scores = ([float(f(x)) for f in (np.median, np.max)] for x in (errors.boxes_px, errors.scores))
    return "boxes {:.1e} px (median), {:.1e} (worst), scores {:.1e}, {:.1e}".format(*boxes_px, *scores)


def run_onnxruntime(file: Path, threads: int, imagenet: bool = False) -> Callable[[], Any]:
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    images = np.random.default_rng(0).random(given.shape, np.float32)
    if imagenet:
        mean, deviation = (np.array(x, np.float32)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_DEVIATION))
        images = (images - mean) / deviation
    feed = {given.name: images}
    return lambda: session.run(None, feed)


def run_openvino(file: Path, threads: int) -> Callable[[], object]:
    import numpy as np
    import openvino as ov

    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(str(file), "CPU", options)
    request = compiled.create_infer_request()
    feed = {0: np.random.default_rng(0).random(list(compiled.input(0).shape), np.float32)}
    return lambda: request.infer(feed)


RUNTIMES = {"onnxruntime": run_onnxruntime, "openvino": run_openvino}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="n")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runtimes", nargs="*", default=list(RUNTIMES))
    parser.add_argument("--dir", type=Path, help="keep the files here and reuse those that are there")
    parser.add_argument("--weights", help="ours, in place of random ones")
    parser.add_argument("--peer", type=Path, help="the peer's own file with these weights")
    parser.add_argument("--imagenet", action="store_true", help="the peer takes pixels normalised as for ImageNet")
    parser.add_argument("--worker")
    args = parser.parse_args()
    if args.worker:
        runtime, _, file = args.worker.partition(" ")
        interleave.serve(lambda: RUNTIMES[runtime](Path(file), args.threads))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        what = Path(args.weights).stem if args.weights else args.variant
        files = {name: folder / f"{name}_{what}_{args.size}.onnx" for name in ("peer", "ours")}
        if not files["peer"].exists():
            _simplify(args.peer, files["peer"]) if args.peer else export_peer(args.variant, args.size, files["peer"])
        if not files["ours"].exists():
            export_ours(args.variant, args.size, files["ours"], args.weights)
        for name, file in files.items():
            print(f"{name:8s} {describe(file)}", flush=True)
        print(f"apart    {difference(list(files.values()), args.size, args.imagenet)}", flush=True)
        for runtime in args.runtimes:
            names = [f"{runtime} {file}" for file in files.values()]
            title = f"{runtime}, {what.upper()} {args.size} px, batch 1, {args.threads} threads"
            rows = interleave.compare(__file__, names, ["--threads", str(args.threads)], args.rounds, args.runs, title)
            for name, row in zip(files, rows, strict=True):
                print(f"{name:8s} {1 / row['ratio_first_over_this']:.3f} of the peer's time")


if __name__ == "__main__":
    main()
