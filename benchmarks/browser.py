"""Exported graphs in a browser, beside transformers' model of the same variant exported by torch.onnx.

    python benchmarks/browser.py --variant n --size 320
    python benchmarks/browser.py --variant n --size 320 --backends webgpu --rounds 1 --runs 1

Both are the raw graphs of ``onnx_export.py``: equal random weights, pixels in, logits and boxes out. Each runs in a
fresh Chromium with ONNX Runtime Web, in turns, and its answers are compared with ONNX Runtime's in Python on the same
file and the same numbers, rows paired: of equal scores a browser may take others first. WebGPU without a GPU computes
in software, which says whether the answers are right and nothing of the time on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import onnx_export
from dfine_jax.converters.gate.compare import Rows
from dfine_jax.converters.web import browser
from dfine_jax.converters.web.runtime import runtime_files
from dfine_jax.errors import UserError
from dfine_jax.ops.postprocess import sigmoid

_PAGE = b"""<!doctype html><meta charset="utf-8"><title>runs</title><script type="module" src="/__check__/run.js">
</script>"""
_SCRIPT = """
const post = (name, body) => fetch(`/__check__/${name}`, { method: "POST", body });
try {
  const wanted = Object.fromEntries(new URLSearchParams(location.search));
  const ort = await import(wanted.backend === "webgpu" ? "/runtime/ort.webgpu.min.mjs" : "/runtime/ort.wasm.min.mjs");
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = new URL("/runtime/", location.href).href;
  ort.env.wasm.numThreads = Number(wanted.threads);
  const graph = new Uint8Array(await (await fetch(`/${wanted.file}`)).arrayBuffer());
  const size = Number(wanted.size);
  const pixels = new Float32Array(await (await fetch("/__check__/pixels.bin")).arrayBuffer());
  let begin = performance.now();
  const session = await ort.InferenceSession.create(graph, { executionProviders: [wanted.backend] });
  const values = { created_s: (performance.now() - begin) / 1000, runs_s: [], shapes: {} };
  for (let i = 0; i <= Number(wanted.runs); i++) {
    begin = performance.now();
    const images = new ort.Tensor("float32", pixels.slice(), [1, 3, size, size]);
    const found = await session.run({ [session.inputNames[0]]: images });
    values.runs_s.push((performance.now() - begin) / 1000);
    for (const [name, { dims, data }] of i ? [] : Object.entries(found)) {
      values.shapes[name] = dims;
      await post(name, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    }
    await post("progress", `run ${i}`);
  }
  await post("done", JSON.stringify(values));
} catch (error) {
  await post("failed", String(error?.message || error));
}
"""


def run(
    folder: Path, file: Path, backend: browser.Backend, pixels: np.ndarray, threads: int, runs: int
) -> tuple[dict[str, Any], Rows]:
    """What one fresh browser measures, and the answers of its first run.

    Raises:
      UserError: the browser or the graph fails.
    """
    program = browser.find_browser()
    if program is None:
        raise UserError(f"no Chromium, Chrome or Edge was found; install one, or name it in {browser.SETTING}")
    own = {"run.html": _PAGE, "run.js": _SCRIPT.encode(), "pixels.bin": pixels.tobytes()}
    query = f"backend={backend}&file={file.name}&size={pixels.shape[-1]}&threads={threads}&runs={runs}"
    flags = browser.flags(backend)
    with browser.serving(folder, own) as (address, mailbox):
        with browser.started(program, f"{address}/__check__/run.html?{query}", flags) as process:
            browser.wait(mailbox, process, timeout_s=3600)
    values = json.loads(mailbox.posted["done"])
    outputs = [np.frombuffer(mailbox.posted[name], np.float32).reshape(dims) for name, dims in values["shapes"].items()]
    return values, _rows(outputs)


def in_python(file: Path, threads: int, runs: int) -> tuple[float, Rows]:
    """Median seconds of a run in ONNX Runtime's Python package, and its answers."""
    run = onnx_export.run_onnxruntime(file, threads)
    outputs, taken = run(), []
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken), _rows([np.asarray(x) for x in outputs])


def _rows(outputs: Sequence[np.ndarray]) -> Rows:
    boxes = next(x for x in outputs if x.ndim == 3 and x.shape[-1] == 4)
    logits = next(x for x in outputs if x.ndim == 3 and x.shape[-1] != 4)
    return Rows(boxes[0], sigmoid(np.asarray(logits[0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="n")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--backends", nargs="*", default=["wasm", "webgpu"], choices=["wasm", "webgpu"])
    parser.add_argument("--threads", type=int, default=2, help="of WebAssembly, and of ONNX Runtime in Python")
    parser.add_argument("--rounds", type=int, default=2, help="fresh browsers for each file")
    parser.add_argument("--runs", type=int, default=10, help="in a browser, those that count")
    parser.add_argument("--settle", type=int, default=25, help="runs of WebAssembly between the first and those")
    parser.add_argument("--runtime", type=Path, help="onnxruntime-web's dist folder; default: fetched once")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        version, content = runtime_files(args.runtime)
        (folder / "runtime").mkdir()
        for name, data in content.items():
            (folder / "runtime" / name).write_bytes(data)
        files = {"ours": folder / "ours.onnx", "peer": folder / "peer.onnx"}
        onnx_export.export_peer(args.variant, args.size, files["peer"])
        onnx_export.export_ours(args.variant, args.size, files["ours"], None)
        # Those of onnx_export.run_onnxruntime.
        pixels = np.random.default_rng(0).random((1, 3, args.size, args.size), np.float32)
        print(f"{args.variant.upper()} {args.size} px, onnxruntime-web {version}, {args.threads} threads, batch 1")
        expected = {}
        for name, file in files.items():
            seconds, expected[name] = in_python(file, args.threads, 10)
            print(f"{name:5s} Python   {seconds:7.3f} s a run; {onnx_export.describe(file)}", flush=True)
        for backend in args.backends:
            seen: dict[str, list[float]] = {name: [] for name in files}
            settle = args.settle if backend == "wasm" else 0
            for _ in range(args.rounds):
                for name, file in files.items():
                    try:
                        values, rows = run(folder, file, backend, pixels, args.threads, settle + args.runs)
                    except UserError as error:
                        print(f"{name:5s} {backend:8s} fails: {error}", flush=True)
                        continue
                    first_s, *others = values["runs_s"]
                    seen[name].append(statistics.median(others[settle:]))
                    early = f" next ten {statistics.mean(others[:10]):6.3f} s," if settle else ""
                    print(
                        f"{name:5s} {backend:8s} created {values['created_s']:6.1f} s, first {first_s:7.2f} s,{early}"
                        f" then {seen[name][-1]:7.3f} s; {onnx_export.apart(expected[name], rows, args.size)}",
                        flush=True,
                    )
            if all(seen.values()):
                ratios = [ours / peer for ours, peer in zip(seen["ours"], seen["peer"], strict=False)]
                print(f"ours  {backend:8s} {statistics.median(ratios):.2f} of the peer's time", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
