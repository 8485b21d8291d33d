"""Names of weights, told apart and found missing without loading what reads them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dfine_jax.errors import UserError
from dfine_jax.families import light
from dfine_jax.system.files import nearby, replaced_path

# A part starts and ends with a letter or digit and has no two dots or dashes in a row, as the hub demands; so it is
# neither a path out of the cache nor a hidden file.
_PART = r"[A-Za-z0-9]+(?:(?:[._]|-(?!-)|__+)[A-Za-z0-9]+)*"
HUGGINGFACE = re.compile(rf"hf:(?P<repository>{_PART}/{_PART})(?:@(?P<at>{_PART}))?|(?P<plain>ustc-community/{_PART})")
EXPORTED = (".onnx", ".xml", ".engine")
EXPECTED = (
    "a checkpoint folder (metadata.json and weights/), an official .pth, a .safetensors, a Hugging Face folder "
    "(config.json and weights) or a published name"
)
OTHERS = (".tflite", ".mlpackage", ".mlmodel", ".torchscript", ".bin", ".trt", ".plan", ".pb", ".hef")


def is_published(name: str) -> bool:
    """Whether the name is of a family's tables, ``ustc-community/<model>`` or ``hf:<owner>/<model>[@revision]``.

    Not ``hf:`` with a repository whose files have names of their own.
    """
    return name in light.published() or (HUGGINGFACE.fullmatch(name) is not None and not light.kept_in(name))


def missing(name: str) -> UserError:
    """The error for a name that is neither there nor published."""
    if kept := light.kept_in(name):
        return UserError(f"{name}: its weights have names of their own here: {', '.join(kept)}")
    if name.startswith("hf:"):
        return UserError(
            f"{name!r} is no name of the Hugging Face hub; write hf:OWNER/MODEL or hf:OWNER/MODEL@REVISION"
        )
    if assigned := re.match(r"(?:model|weights)=(.*)", name):
        return UserError(f"{name} is no model; write {assigned[1] or 'MODEL'} alone, without the word before it")
    near = light.near_published(name)
    if near:
        return UserError(f"{name} does not exist; did you mean {' or '.join(near)}?")
    if beside := nearby(Path(name)):
        return UserError(f"{name} does not exist; did you mean {beside}?")
    if Path(name).suffix.lower() in EXPORTED:
        return UserError(f"{name} does not exist; dfine export writes one")
    return UserError(f"{name} does not exist; expected {EXPECTED}, such as {light.published()[0]}")


def require(source: str | os.PathLike[str], *, exported: bool = True) -> None:
    """What is wrong with the name of a model as far as its name and place tell.

    Args:
      exported: an exported file will do.

    Raises:
      UserError: nothing is there, or it is of another kind.
    """
    name = os.fspath(source)
    path, suffix = Path(name), Path(name).suffix.lower()
    if path.is_file():
        from dfine_jax.data.picture.images import EXTENSIONS

        if suffix in EXTENSIONS:
            raise UserError(f"{name} is a picture and no model; the model comes first, such as MODEL {name}")
        if suffix in EXPORTED and not exported:
            raise UserError(f"{name} is exported already; give the checkpoint or weights that it was made from")
        if suffix in OTHERS:
            raise UserError(f"{name} is of a kind that cannot be run here ({suffix}); give {EXPECTED}")
    elif not path.exists() and not is_published(name) and not replaced_path(path).is_dir():
        raise missing(name)
