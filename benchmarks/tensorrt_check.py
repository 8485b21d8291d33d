"""TensorRT on a machine that has a GPU: builds engines, passes them through the gate, measures them; one report.

    python benchmarks/tensorrt_check.py runs/cells/best --data cells
    python benchmarks/tensorrt_check.py cells.onnx cells-fp16.onnx --package tensorrt_rtx
    python benchmarks/tensorrt_check.py cells.onnx --package tensorrt_rtx --build-only      # needs no GPU
    python benchmarks/tensorrt_check.py runs/cells/best --engine cells.engine --data cells  # built elsewhere

Checkpoints are exported first (fp32 and fp16, any batch) and compared with the model in JAX; ONNX files are compared
with the first of them in ONNX Runtime on the CPU, so fp32 comes before fp16.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dfine_jax.benchmark import latency, latency_report
from dfine_jax.errors import UserError


def sources(models: list[str], folder: Path, engines: list[Path]) -> tuple[list[Path], Any, Any, Callable | None, Any]:
    """ONNX files to build from, where no engines are given; model, variables, reference and classes to compare with."""
    if all(model.endswith(".onnx") for model in models):
        from dfine_jax.serving.backends.registry import open_artefact

        reference = open_artefact(models[0], device="cpu")
        return [] if engines else [Path(model) for model in models], None, None, reference.predict, None
    if len(models) > 1:
        raise UserError("give one checkpoint, or ONNX files")
    from dfine_jax.commands.export import description
    from dfine_jax.converters.onnx.export import export_onnx, save
    from dfine_jax.weights.load import load_checkpoint

    loaded = load_checkpoint(models[0])
    meta = loaded.metadata
    classes = meta.classes
    described = description(models[0], loaded)
    files = []
    for precision in () if engines else ("fp32", "fp16"):
        size = meta.input_size_px
        proto = export_onnx(loaded.model, loaded.variables, described, size_hw=size, batch=None, precision=precision)
        files.append(folder / f"{precision}.onnx")
        save(proto, files[-1])
    return files, loaded.model, loaded.variables, None, classes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--package", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt")
    parser.add_argument("--data", help="annotated images: AP is compared too")
    parser.add_argument("--engine", type=Path, nargs="+", default=[], help="check these instead of building any")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--keep", type=Path, help="folder for ONNX files and engines (default: a temporary one)")
    parser.add_argument("--build-only", action="store_true", help="no GPU: build, do not run")
    args = parser.parse_args()
    from dfine_jax.converters.tensorrt.export import EngineBuilder

    hardware = latency.hardware()
    print(", ".join(f"{name} {value}" for name, value in hardware.items()))
    folder = args.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    cache = folder / "tensorrt.cache" if args.package == "tensorrt" else None
    builder = EngineBuilder(args.package, (1, 1, args.max_batch), timing_cache=cache)
    files, model, variables, reference, classes = sources(args.model, folder, args.engine)
    engines = list(args.engine)
    for file in files:
        started = time.perf_counter()
        engines.append(builder.build(file, folder / f"{file.stem}.{args.package}.engine"))
        size = engines[-1].stat().st_size / 1e6
        print(f"{file.name}: {args.package} engine of {size:.1f} MB in {time.perf_counter() - started:.1f} s")
    if args.build_only:
        print("built, not run: numbers and latency need a GPU")
        return 0
    from dfine_jax.converters.gate.gate import check_artefact

    passed = True
    for engine in engines:
        report = check_artefact(
            engine, model, variables, classes=classes, reference=reference, data=args.data, split="val"
        )
        print(f"\n{report.table()}")
        passed &= report.passed
    pictures = tuple(latency.Picture(str(p), i) for i, p in enumerate(generated(folder)))
    amounts = latency.Amounts(pictures, rounds=10, raw_runs=50, batches=(1, args.max_batch))
    contenders = [latency.Contender(str(engine)) for engine in engines]
    measured = latency.measure(contenders, amounts)
    print(latency_report.table(measured, hardware, "generated pictures"))
    return 0 if passed else 1


def generated(folder: Path, count: int = 20) -> list[Path]:
    import numpy as np

    from dfine_jax.data.read.synthetic import draw_scene

    files = []
    for i in range(count):
        files.append(folder / f"picture_{i}.jpg")
        draw_scene(np.random.default_rng(i), 640)[0].save(files[-1], quality=90)
    return files


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"tensorrt_check: {error}")
