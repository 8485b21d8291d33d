"""``dfine serve``: a model behind HTTP."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dfine_jax.commands.early import require_model
from dfine_jax.commands.evaluate import add_runtime_options
from dfine_jax.errors import UserError
from dfine_jax.system.installed import require

if TYPE_CHECKING:
    from dfine_jax.server.engine import Engine

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``serve`` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="answer HTTP requests: JSON, drawn pictures, a page to drop a picture on",
        description="Answer HTTP requests with detections. GET / is a page to drop a picture on, POST /detect takes "
        "pictures, GET /health and /metadata tell of the server and the model.",
        epilog="examples:\n"
        "  dfine serve cells.onnx\n"
        "  curl -F file=@photo.jpg http://127.0.0.1:8000/detect\n"
        "  curl --data-binary @photo.jpg 'http://127.0.0.1:8000/detect?threshold=0.3&classes=car,truck'\n"
        "  curl --data-binary @photo.jpg -o drawn.png 'http://127.0.0.1:8000/detect?format=png'\n"
        "  dfine serve cells.onnx --host 0.0.0.0 --device cuda --batch 8 --wait-ms 5",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="exported file (.onnx, .xml, .engine), checkpoint, or published name"
    )
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    parser.add_argument("--port", metavar="N", type=int, default=8000, help="default: 8000; 0: any that is free")
    parser.add_argument(
        "--cors", metavar="ORIGIN", action="append", default=[],
        help="let pages of this origin read answers, such as https://example.org; may be repeated (default: none)",
    )  # fmt: skip
    detection = parser.add_argument_group("detection")
    detection.add_argument(
        "--threshold", metavar="T", type=float,
        help="smallest score where a request does not say it (default: that of the best F1 when the weights were "
        "evaluated, if they know it, else 0.5)",
    )  # fmt: skip
    detection.add_argument(
        "--mask-threshold", metavar="P", type=float, default=0.5,
        help="smallest probability of a pixel of an object (default: 0.5)",
    )  # fmt: skip
    detection.add_argument(
        "--batch", metavar="N", type=int,
        help="pictures that arrive while the network runs are put together, up to N (default: 1, or as exported)",
    )  # fmt: skip
    detection.add_argument(
        "--wait-ms",
        metavar="MS",
        type=float,
        default=0.0,
        help="let a batch that is not full wait for more (default: 0)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-mb", metavar="MB", type=float, default=20.0, help="of a request's body (default: 20)")
    limits.add_argument("--max-megapixels", metavar="MP", type=float, default=50.0, help="of a picture (default: 50)")
    limits.add_argument("--max-pictures", metavar="N", type=int, default=16, help="of a request (default: 16)")
    limits.add_argument(
        "--max-requests", metavar="N", type=int, default=64, help="at a time, more are told to come back (default: 64)"
    )
    limits.add_argument("--timeout", metavar="S", type=float, default=30.0, help="of a request (default: 30)")
    add_runtime_options(parser)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal."""
    require_model(options.model)
    for origin in options.cors:
        if origin != "*" and ("://" not in origin or origin.count("/") > 2):
            raise UserError(f"--cors {origin} is no origin; write it as https://example.org, without a path")
    for library in ("starlette", "python_multipart", "uvicorn"):
        require(library, "dfine serve")

    from dfine_jax.prediction.detector import open_model
    from dfine_jax.server.app import application
    from dfine_jax.server.engine import Engine
    from dfine_jax.server.limits import Limits
    from dfine_jax.server.run import bind, listen, url
    from dfine_jax.server.run import run as serve

    limits = Limits(options.max_mb, options.max_megapixels, options.max_pictures, options.max_requests, options.timeout)
    with bind(options.host, options.port) as bound:
        model = open_model(options.model, runtime=options.runtime, device=options.device, threads=options.threads)
        engine = Engine(
            model, threshold=options.threshold, mask_threshold=options.mask_threshold, batch=options.batch,
            wait_ms=options.wait_ms, megapixels=limits.megapixels,
        )  # fmt: skip
        engine.prepare()
        name = Path(options.model).name or options.model
        app = application(engine, name, limits, options.cors)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        listen(bound)
        print(_description(engine, name, model.batch))
        if options.host not in _LOOPBACK:
            print(
                "dfine: whoever reaches this address may use the model: there is no password and no TLS; put a proxy "
                "before it that has them",
                file=sys.stderr,
            )
        print(f"{url(bound)} is the page, POST {url(bound)}/detect; Ctrl-C ends", flush=True)
        serve(app, bound, limits)
    print("dfine: stopped; all requests are answered", file=sys.stderr)
    return 0


def _description(engine: Engine, name: str, only_batch: int | None) -> str:
    detector, where = engine.detector, engine.describe()
    height, width = detector.input_size_px
    batches = f"batches of up to {engine.batch} pictures"
    if engine.batch == 1:
        batches = "one picture at a time" + (", for which the file is made" if only_batch == 1 else "")
    elif only_batch:
        batches = f"batches of {engine.batch}, for which the file is made"
    return (
        f"{name}: {len(detector.names)} classes, input {height}x{width}, threshold {detector.threshold_told}; "
        f"{where.get('runtime', 'unknown')} on {detector.device}, {batches}"
    )
