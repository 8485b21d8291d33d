"""What can be wrong with the arguments of a command and is told before anything large is loaded."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from dfine_jax.commands import words
from dfine_jax.errors import UserError
from dfine_jax.families import light
from dfine_jax.system.config_values import override
from dfine_jax.weights import names

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
    beside = sorted(entry.name for entry in os.scandir(path.parent)) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.75)
    cure = f"; did you mean {path.parent / near[0]}?" if near else ""
    raise UserError(f"data folder {path} does not exist{cure}")


def require_runtime(name: str, where: str) -> None:
    """A runtime of exported files has this name; ``where`` it was written, for the message."""
    if name not in RUNTIMES:
        raise UserError(f"{where}: {name!r} is none of {', '.join(RUNTIMES)}{words.near(name.lower(), RUNTIMES)}")


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
    if size_px and any(side % grid_px or side < grid_px for side in size_px):
        near = "x".join(str(max(grid_px, round(side / grid_px) * grid_px)) for side in size_px)
        raise UserError(
            f"--size {size_px[0]}x{size_px[1]}: sides must be multiples of {grid_px}; {near} is the nearest"
        )
