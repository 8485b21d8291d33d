"""What can be said of the families without their networks: names, variants, configurations. Nothing here loads JAX.

So mistakes in names and sizes are told at once. Each family has the modules ``variants`` (``VARIANTS``, ``grid_px``),
``published`` (``DETECTORS``) and ``config`` (``LossConfig``), which import none of it either.
"""

from __future__ import annotations

import difflib
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from dfine_jax.config import Config, ModelSection
from dfine_jax.errors import UserError
from dfine_jax.families import FIRST, NAMES
from dfine_jax.system import stored
from dfine_jax.system.config_values import from_dict, known_only
from dfine_jax.system.files import read_json

_FOLDERS = {"rtdetrv2": "rtdetr"}  # where it is not the name of the family

_HUB = "https://huggingface.co/"


def _part(family: str, name: str) -> ModuleType:
    return importlib.import_module(f"dfine_jax.families.{_FOLDERS.get(family, family)}.{name}")


def published() -> tuple[str, ...]:
    """Names of published detectors."""
    return tuple(name for family in NAMES for name in _part(family, "published").DETECTORS)


def recipes() -> tuple[str, ...]:
    """Names that ``families.of_recipe`` takes, without needless prefixes."""
    every = ((family, name) for family in NAMES for name in _part(family, "variants").VARIANTS)
    return tuple(name if family == FIRST else f"{family}-{name}" for family, name in every)


def variant(recipe: str) -> ModelSection:
    """The architecture of ``[family-]variant``.

    Raises:
      UserError: there is no such variant; near ones are suggested.
    """
    before = next((family for family in NAMES if recipe.startswith(f"{family}-")), "")
    name = recipe[len(before) + 1 :] if before else recipe
    variants = _part(before or FIRST, "variants").VARIANTS
    if name not in variants:
        raise UserError(f"unknown recipe {recipe!r}; {_advice(recipe)}")
    return variants[name]


def plain_config(model: ModelSection) -> Config:
    """A configuration with the defaults of everything else, to check keys and types by."""
    losses: Any = _part(model.family, "config")
    (loss,) = (each for name, each in vars(losses).items() if name.endswith("LossConfig"))
    return Config(model, loss())


def of_task(model: ModelSection, task: str | None) -> ModelSection:
    """The variant that ``--task`` (segment, detect) stands for; of families that do one thing, the model as it is."""
    change = {"segment": "segmenting", "detect": "detecting"}.get(task or "", "")
    return getattr(_part(model.family, "variants"), change, lambda same: same)(model)


def grid_px(model: ModelSection) -> int:
    """Sides of the input are multiples of it."""
    return _part(model.family, "variants").grid_px(model)


def grid_of_weights(source: str | os.PathLike[str]) -> int | None:
    """As ``grid_px``, of a published name or of a checkpoint folder; None: neither says it without being read."""
    name = os.fspath(source)
    if name in published():
        return _grid_of_published(name)
    file = Path(name) / "metadata.json"
    if not file.is_file():
        return None
    try:  # what is wrong with a description is for those to say who read all of it
        values = stored.current(read_json(file), file)["config"]["model"]
        family = values.get("family", FIRST)
        configs = vars(_part(family, "config"))
        (model,) = (each for key, each in configs.items() if key.endswith("Config") and hasattr(each, "family"))
        return grid_px(from_dict(model, known_only(model, values)[0]))
    except (UserError, KeyError, TypeError, ValueError, AttributeError, ImportError):
        return None


def _grid_of_published(name: str) -> int | None:
    """By its variant; where neither the table nor the name says it, what all variants of the family agree on."""
    family = next(family for family in NAMES if name in _part(family, "published").DETECTORS)
    variants, told = _part(family, "variants").VARIANTS, _part(family, "published").DETECTORS[name].variant
    named = [each for each in variants if each == told or (not told and name.startswith(f"{family}-{each}-"))]
    grids = {grid_px(variants[each]) for each in ([max(named, key=len)] if named else variants)}
    return grids.pop() if len(grids) == 1 else None


def _advice(recipe: str) -> str:
    """Recipes that may be meant: of the same letters, or of published weights of that name."""
    names = recipes()
    for tail in ("-coco", "-obj365", "-obj2coco"):
        if recipe.endswith(tail) and (bare := recipe.removesuffix(tail)) in {*names, *(f"{FIRST}-{n}" for n in names)}:
            short = bare.removeprefix(f"{FIRST}-")
            return f"the recipe is {short}, these are weights to start from: {short} --weights {recipe}"
    near = difflib.get_close_matches(recipe.lower(), names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose one of {', '.join(names)} or a file with get_config()"


def kept_in(repository: str) -> list[str]:
    """Published names of the files in a repository of the Hugging Face hub, ``[hf:]owner/name`` or its address."""
    plain = repository.lower().removeprefix("hf:").removeprefix(_HUB).partition("@")[0].rstrip("/")
    if plain.count("/") != 1:
        return []
    every = ((name, each.url) for family in NAMES for name, each in _part(family, "published").DETECTORS.items())
    return [name for name, url in every if url.lower().startswith(f"{_HUB}{plain}/")]


def near_published(name: str) -> list[str]:
    """Published names that may be meant by one that is none: without its data set, or nearly spelled."""
    known, plain = published(), name.lower().replace("_", "-").removesuffix(".pth").removesuffix(".pt")
    if plain in known:
        return [plain]
    whole = [f"{start}{plain}-coco" for start in ("", f"{FIRST}-", f"{FIRST}")]
    exact = [each for each in whole if each in known]
    return exact[:1] or difflib.get_close_matches(plain, known, n=2, cutoff=0.75)
