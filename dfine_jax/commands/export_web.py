"""``dfine export --to web``: what is asked of the command line, and the folder it makes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.converters.gate.data import CheckData
    from dfine_jax.converters.gate.report import GateReport
    from dfine_jax.families.family import Reduction
    from dfine_jax.weights.load import LoadedModel


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the web export alone."""
    group = parser.add_argument_group("web")
    group.add_argument(
        "--runtime", metavar="PATH", type=Path,
        help="files of ONNX Runtime Web: the npm package's archive or its folder (default: downloaded once)",
    )  # fmt: skip


def check_options(options: argparse.Namespace) -> None:
    """UserError for options that the folder has no use for."""
    if options.runtime and options.to != "web":
        raise UserError("--runtime is for the browser; add --to web, or leave it out")
    if options.to != "web":
        return
    if options.runtime and not options.runtime.exists():
        raise UserError(f"--runtime {options.runtime} does not exist")
    usual = {"--batch": "1", "--precision": "fp32", "--graph": "raw", "--input": "float32", "--source-size": None}
    for name, value in {**usual, "--max-ap-drop": None}.items():
        given = getattr(options, name[2:].replace("-", "_"))
        if given != value:
            raise UserError(f"{name} {given} is not for --to web, whose graph takes any picture; leave it out")


def export_folder(
    options: argparse.Namespace,
    loaded: LoadedModel,
    meta: dict[str, Any],
    data: CheckData,
    size_hw: tuple[int, int],
    reduction: Reduction,
) -> GateReport:
    """As ``converters.web.export.export_web``, for what the options ask."""
    from dfine_jax.converters.web.export import export_web

    model = loaded.metadata.config.model
    return export_web(
        loaded.model,
        loaded.variables,
        meta,
        options.out or Path(f"{model.family}-{model.variant}-web"),
        size_hw=size_hw,
        data=data,
        reduction=reduction,
        runtime=options.runtime,
        run_browser=not options.build_only,
    )
