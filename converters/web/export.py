"""``dfine export --to web``: a model as a folder that any static host serves, checked before it gets its name."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dfine_jax import __version__
from dfine_jax.converters.gate import compare
from dfine_jax.converters.gate.compare import RESIZING
from dfine_jax.converters.gate.data import CheckData, pictures
from dfine_jax.converters.gate.report import GateReport, write
from dfine_jax.converters.gate.staging import RefusedError
from dfine_jax.converters.onnx.export import export_onnx, operating_point
from dfine_jax.converters.web import check, folder
from dfine_jax.converters.web.graph import with_pictures
from dfine_jax.converters.web.runtime import runtime_files
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.synthetic import draw_scene
from dfine_jax.families import of, recipe_name, task, title
from dfine_jax.families.family import Reduction
from dfine_jax.serving.backends.jax_model import JaxBackend
from dfine_jax.serving.page_files import description

logger = logging.getLogger(__name__)

_PICTURES = 4  # of the comparison, all of other sizes where they are drawn
_KNOWN_OBJECTS = 10  # that a browser checks its backend with
_THRESHOLD = 0.5


def export_web(
    model: Any,
    variables: Any,
    meta: dict[str, Any],
    final: Path,
    *,
    size_hw: tuple[int, int],
    data: CheckData,
    reduction: Reduction = Reduction(),  # noqa: B008
    runtime: Path | None = None,
    run_browser: bool = True,
) -> GateReport:
    """Write the folder, compare it with the model in ONNX Runtime and in a browser, and give it its name.

    Args:
      meta: as of ``export_onnx``; ``preprocess`` must be there.
      runtime: of ``runtime_files``.
      run_browser: look at the folder in a browser that is installed here.

    Raises:
      UserError: no files of ONNX Runtime Web, a wrong size or operating point, or another thing at ``final``.
      RefusedError: the folder answers otherwise than the model; it is not kept.
    """
    version, files = runtime_files(runtime)
    preprocess = dataclasses.replace(meta["preprocess"], height_px=size_hw[0], width_px=size_hw[1])
    with folder.staged_folder(final) as staged:
        network = export_onnx(model, variables, meta, size_hw=size_hw, graph="complete", reduction=reduction)
        graph = with_pictures(network, preprocess).SerializeToString()
        reference = JaxBackend(operating_point(model, variables, reduction), variables, preprocess.scale).predict
        about = _about(model, meta, preprocess) | {"runtime": f"onnxruntime-web {version}"}
        scene = np.asarray(draw_scene(np.random.default_rng(7), 320)[0])[:256]
        session = check.Graph(graph)
        known = _objects(session(scene), about, scene.shape[1::-1])
        folder.write_folder(staged, graph, about, files, (scene, known))
        shown, origin = pictures(data, _PICTURES)
        answers = check.model_answers(reference, preprocess, shown)
        count = len(meta["class_names"])
        found = check.compared([session(picture) for picture in shown], answers, preprocess, count, RESIZING)
        failures = tuple(compare.exceeded(found, RESIZING))
        asked = run_browser and not failures
        browsers = check.in_browsers(staged, shown, answers, preprocess, count) if asked else []
        report = _report(final, graph, size_hw, reduction, session, origin, found, failures, browsers)
        if not browsers:
            why = "no browser was found" if asked else "no browser was asked"
            outcome = f"{why}: the folder's page has not run, only its graph has"
            report = dataclasses.replace(report, elsewhere={"a browser": outcome})
        if report.failures:
            folder.discard(final)
            write(report, final)
            raise RefusedError(f"{final} was refused: {report.summary()} (see {final.name}.report.txt)")
        folder.release_folder(staged, final)
        write(report, final)
    return report


def _about(model: Any, meta: dict[str, Any], preprocess: Preprocess) -> dict[str, Any]:
    """What the page is told about the model."""
    config = model.config
    return description(
        folder.ENGINE,
        variant=recipe_name(config),
        task=task(config),
        class_names=tuple(meta["class_names"]),
        category_ids=tuple(meta["category_ids"]),
        threshold=meta.get("best_threshold") or _THRESHOLD,
        title=title(config),
        input={"size_hw": [preprocess.height_px, preprocess.width_px], "preprocess": preprocess.to_dict()},
        rules=of(config).answer_rules(config)._asdict(),
        source=meta.get("source", {}),
        licence=meta.get("licence", ""),
        dfine_jax_version=__version__,
    )


def _objects(outputs: dict[str, np.ndarray], about: dict[str, Any], size_px: Sequence[int]) -> list[dict[str, Any]]:
    """The best detections of a picture of (width, height), as the page writes them."""
    scores, labels, boxes = (outputs[name][0] for name in ("scores", "labels", "boxes"))
    if about["rules"]["clip_boxes"]:
        boxes = boxes.clip(0, [*size_px, *size_px])
    seen = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero()[0][:_KNOWN_OBJECTS]
    return [
        {"label": int(label), "score": round(float(score), 5), "box": [round(float(side), 2) for side in box]}
        for score, label, box in zip(scores[seen], labels[seen], boxes[seen], strict=True)
    ]


def _report(
    final: Path,
    graph: bytes,
    size_hw: tuple[int, int],
    reduction: Reduction,
    session: check.Graph,
    origin: str,
    found: compare.Comparison,
    failures: tuple[str, ...],
    browsers: list[check.InBrowser],
) -> GateReport:
    wasm = [failure for run in browsers if "WebGPU" not in run.name for failure in run.failures]
    for run in browsers:
        if "WebGPU" in run.name and run.failures:
            logger.warning("%s; the page takes WebAssembly where it finds that", run.failures[0])
    return GateReport(
        file=final.name,
        sha256=hashlib.sha256(graph).hexdigest(),
        graph="complete",
        precision="fp32",
        input={"dtype": "uint8", "layout": "RGBA of any size, resized to", "size_hw": list(size_hw), "batch": 1},
        operating_point={key: value for key, value in reduction._asdict().items() if value not in (None, ())},
        ran_on=session.describe,
        images=origin,
        limits=RESIZING,
        comparisons=(found,),
        accuracy=None,
        mask_accuracy=None,
        no_accuracy="detections are compared one by one; dfine evaluate measures the model",
        failures=(*failures, *wasm),
        first_divergence=None,
        no_divergence="",
        elsewhere={run.name: run.outcome for run in browsers},
        times={run.name: run.times for run in browsers},
    )
