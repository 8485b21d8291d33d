"""What can be wrong with the arguments of a command and is told before anything large is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dfine_jax.commands import words
from dfine_jax.commands.train_plan import parse_size
from dfine_jax.errors import UserError
from dfine_jax.families import light
from dfine_jax.system.config_values import override
from dfine_jax.system.files import nearby
from dfine_jax.weights import names

_NO_JSON = (".csv", ".tsv", ".jsonl", ".txt", ".xlsx", ".xls", ".xml", ".yaml", ".yml", ".html", ".parquet", ".zip")
RUNTIMES = ("onnxruntime", "openvino", "tensorrt")


def require_model(source: str | os.PathLike[str], *, exported: bool = True) -> None:
    """A model is there or published, see ``names.require``."""
    names.require(source, exported=exported)


def require_data(data: object) -> None:
    """A dataset is there.

    Raises:
      UserError: it is not; a name nearby is suggested.
    """
    path = Path(str(data))
    if str(data).startswith("tfds:") or path.exists():
        return
    near = nearby(path)
    cure = f"; did you mean {near}?" if near else ""
    raise UserError(f"data folder {path} does not exist{cure}")


def require_runtime(name: str, where: str) -> None:
    """A runtime of exported files has this name; ``where`` it was written, for the message."""
    if name not in RUNTIMES:
        raise UserError(f"{where}: {name!r} is none of {', '.join(RUNTIMES)}{words.near(name.lower(), RUNTIMES)}")


def require_json_name(option: str, file: Path | None, cure: str = "") -> None:
    """A file of JSON is not called as one of another kind; ``cure``: what gives the other kind, if anything does."""
    if file is not None and file.suffix.lower() in _NO_JSON:
        other = f", or {cure}" if cure else ""
        raise UserError(f"{option} {file} would hold JSON; name it .json{other}")


def looks_like_a_file(path: Path) -> bool:
    """Whether a path that does not exist is called as a file of data is."""
    return path.suffix.lower() in (*_NO_JSON, ".json") and not path.is_dir()


def check_recipe(
    recipe: str, size_px: tuple[int, int] | None, overrides: Sequence[str], task: str | None = None
) -> None:
    """A variant exists, its configuration has these keys with values of these types, and it takes this input size.

    Args:
      task: that of ``--task``, which may stand for another variant with another step of sizes.

    Raises:
      UserError: one of them is not so.
    """
    model = light.of_task(light.variant(recipe), task)
    grid_px = light.grid_px(override(light.plain_config(model), overrides).model)
    if size_px:
        _check_grid(size_px, grid_px)


def check_size(model: str | os.PathLike[str], size: str | None) -> None:
    """A model takes the input size of ``--size``, as far as its name, its ending or its description tells.

    Raises:
      UserError: it does not.
    """
    if not size:
        return
    size_px = parse_size(size)
    if Path(model).suffix.lower() in names.EXPORTED:
        raise UserError(f"--size {size}: {model} has one input size; export the model with --size")
    _check_grid(size_px, light.grid_of_weights(model) or 1)


def _check_grid(size_px: tuple[int, int], grid_px: int) -> None:
    if all(side >= grid_px and side % grid_px == 0 for side in size_px):
        return
    asked = f"--size {size_px[0]}x{size_px[1]}"
    if grid_px == 1:
        raise UserError(f"{asked}: sides must be at least 1")
    near = "x".join(str(max(grid_px, round(side / grid_px) * grid_px)) for side in size_px)
    raise UserError(f"{asked}: sides must be multiples of {grid_px}; {near} is the nearest")
