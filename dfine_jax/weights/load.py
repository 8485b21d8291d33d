"""Weights from own checkpoints, official ``.pth``, ``.safetensors``, Hugging Face folders, and by published name."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array

from dfine_jax.config import Activation, ModelSection
from dfine_jax.data.read.coco_names import COCO_ALIASES, OBJECTS365_ALIASES
from dfine_jax.errors import UserError
from dfine_jax.families import of, task, title
from dfine_jax.families.family import Build
from dfine_jax.ops.postprocess import AnswerRules
from dfine_jax.system.files import replaced_path
from dfine_jax.training.run.checkpoint import Metadata, load_weights
from dfine_jax.weights.names import is_published, missing


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model, its averaged weights ``{"params", "batch_stats"}``, and what is known about them."""

    model: nn.Module
    variables: dict[str, Any]
    metadata: Metadata

    @property
    def grid_px(self) -> int:
        """Sides of the input are multiples of it."""
        model = self.metadata.config.model
        return of(model).grid_px(model)

    @property
    def rules(self) -> AnswerRules:
        """How its answers become detections."""
        model = self.metadata.config.model
        return of(model).answer_rules(model)

    @property
    def segments(self) -> bool:
        """It makes masks too."""
        return task(self.metadata.config.model) == "segment"


def load(source: str | os.PathLike[str], *, activation: Activation | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Model and variables for ``model.apply(variables, images, train=False)``.

    Args:
      source: checkpoint folder, official ``.pth``, ``.safetensors``, Hugging Face folder or published name
        (``dfine-s-coco``).
      activation: of decoder and heads, for files that do not say it: ``relu`` (D-FINE) or ``silu`` (DEIM). None: found
        by the name of the file or its batch norms, with a warning that says so.

    Raises:
      UserError: nothing of that kind is there, it is damaged or has values that are not finite, its activation is not
        to be found, or it says itself that it has another one.
    """
    loaded = load_checkpoint(source, activation=activation)
    return loaded.model, loaded.variables


def load_checkpoint(source: str | os.PathLike[str], *, activation: Activation | None = None) -> LoadedModel:
    """As ``load``, with the description of the weights: classes, input size, origin.

    Raises:
      UserError: as ``load``.
    """
    variables, metadata = read(source, activation=activation)
    variables = jax.tree.map(jnp.asarray, variables)
    # float32 as in the evaluation during training, whatever the weights were trained in.
    model = of(metadata.config.model).build(dataclasses.replace(metadata.config.model, precision="float32"), Build())
    return LoadedModel(model, variables, metadata)


def read(
    source: str | os.PathLike[str], *, activation: Activation | None = None, class_names: Sequence[str] | None = None
) -> tuple[dict[str, Any], Metadata]:
    """Variables (float32 NumPy) and description of weights, wherever they are: the one way in for all commands.

    Args:
      source: as for ``load``.
      activation: as for ``load``.
      class_names: one per class, for files that do not say them.

    Raises:
      UserError: as ``load``, or a checkpoint folder is given names.
    """
    name = os.fspath(source)
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        return _own(path, activation, class_names)
    from dfine_jax.converters.torch.importer import import_weights
    from dfine_jax.weights import hub

    if path.exists():
        return import_weights(path, activation=activation, class_names=class_names)
    if is_published(name):
        return import_weights(
            hub.fetch(name), activation=activation, class_names=class_names, licence=hub.licence(name)
        )
    if replaced_path(path).is_dir():
        return _own(path, activation, class_names)
    raise missing(name)


def _own(
    path: Path, activation: Activation | None, class_names: Sequence[str] | None
) -> tuple[dict[str, Any], Metadata]:
    variables, metadata = load_weights(path)
    stored = metadata.config.model.decoder_activation
    if activation not in (None, stored):
        raise UserError(f"{path} is a checkpoint that knows its activation ({stored}); leave {activation} out")
    if class_names is not None:
        raise UserError(f"{path} is a checkpoint that knows its classes; leave the names out")
    return variables, metadata


def bound_fields(model: ModelSection) -> dict[str, Any]:
    """Fields of an architecture that weights decide, with their values: all but the family's ``free`` ones.

    Many leave no trace in the shapes of the weights.
    """
    free = of(model).free
    return {name: value for name, value in dataclasses.asdict(model).items() if name not in free}


def check_same_architecture(weights: ModelSection, model: ModelSection) -> None:
    """Weights compute in ``model`` what they computed where they were trained.

    Raises:
      UserError: a field that weights decide differs; the message names it with both values.
    """
    stored, adaptable = bound_fields(weights), of(model).adaptable
    fields = {name: value for name, value in bound_fields(model).items() if name not in adaptable}
    differing = {name: value for name, value in fields.items() if value != stored.get(name)}
    wrong = [f"model.{name} is {stored.get(name)!r} in the weights, not {value!r}" for name, value in differing.items()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(
            f"the weights are of another architecture: {', '.join(wrong[:3])}{more}; leave these values out, or start "
            "from weights that have them"
        )


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What starting from other weights did to the parts that are not simply taken over."""

    variables: dict[str, Any]
    origins: dict[str, str | None]  # new class -> class whose rows it takes over; None: it starts anew
    renewed: tuple[str, ...] = ()  # paths of parameters that start anew

    def notes(self) -> list[str]:
        """Lines that say where each class comes from, and which parts start anew."""
        same = [name for name, origin in self.origins.items() if origin == name]
        renamed = [f"{name} <- {origin}" for name, origin in self.origins.items() if origin not in (None, name)]
        fresh = [name for name, origin in self.origins.items() if origin is None]
        parts = (("taken over by name", same), ("taken over", renamed), ("that start anew", fresh))
        texts = [f"classes {kind} ({len(names)}): {', '.join(names)}" for kind, names in parts if names]
        if self.renewed:
            modules = dict.fromkeys("/".join(path.split("/")[1:3]) for path in self.renewed)
            texts.append(f"parts that start anew, because this run builds them otherwise: {', '.join(modules)}")
        return [line for text in texts for line in textwrap.wrap(text, 116, subsequent_indent="  ")]


def transfer(source: LoadedModel, fresh: dict[str, Any], class_names: Sequence[str], model: ModelSection) -> Transfer:
    """Weights of ``source`` for a model of other classes; rows of classes with the same name are taken over.

    Names are compared without regard to case, dashes and underscores, and what other sets call COCO's classes counts as
    COCO's names. Rows behind those of the classes, which are of none, are taken over as far as both have them.

    Args:
      fresh: initial variables of the new model, which keep the rows of new classes.
      class_names: classes of the new model, by label.
      model: architecture of the new model. Fields outside the family's ``free`` and ``adaptable`` must be those of the
        weights, also where they leave no trace in shapes (sampling points, activations).

    Raises:
      UserError: the models differ in more than what is free.
    """
    check_same_architecture(source.metadata.config.model, model)
    names = source.metadata.class_names
    rows = {_key(name): row for row, name in reversed(list(enumerate(names)))}
    rows |= {name: row for row, name in reversed(list(enumerate(names)))}  # the exact name first
    origin = {new: rows.get(name, rows.get(_key(name))) for new, name in enumerate(class_names)}
    pairs = [(new, row) for new, row in origin.items() if row is not None]
    old, new = _by_path(source.variables), _by_path(fresh)
    anew = of(model).renewed(source.metadata.config.model, model)
    renewed = {key for key in old.keys() | new.keys() if anew is not None and re.search(anew, key)}
    problems = sorted((old.keys() ^ new.keys()) - renewed)
    axes = {key: _class_axis(key, model) for key in new}
    shared = (old.keys() & new.keys()) - renewed
    problems += [k for k in sorted(shared) if axes[k] is None and old[k].shape != new[k].shape]
    if problems:
        raise UserError(
            f"the weights are of another architecture ({title(source.metadata.config.model)}); "
            f"{len(problems)} entries differ, such as {problems[0]}"
        )
    taken = {key: axis for key, axis in axes.items() if key not in renewed}
    counts = model.num_classes, source.metadata.config.model.num_classes
    out = {k: old[k] if axis is None else _with_rows(axis, old[k], new[k], pairs, counts) for k, axis in taken.items()}
    out |= {key: new[key] for key in new if key in renewed}
    origins = {class_names[new]: None if row is None else names[row] for new, row in origin.items()}
    tree = {name: {} for name in source.variables} | traverse_util.unflatten_dict(out, sep="/")
    return Transfer(tree, origins, tuple(sorted(new.keys() & renewed)))


def _class_axis(path: str, model: ModelSection) -> int | None:
    """Axis of the classes in a parameter that has one."""
    return next((leaf.axis for leaf in of(model).class_leaves if re.search(leaf.pattern, path)), None)


def _key(name: str) -> str:
    """What two spellings of a class have in common."""
    plain = " ".join(re.split(r"[\s_-]+", name.strip().lower()))
    return OBJECTS365_ALIASES.get(plain, COCO_ALIASES.get(plain, plain))


def with_backbone(variables: dict[str, Any], backbone: dict[str, Any]) -> dict[str, Any]:
    """Variables whose backbone is another one's, for example one trained on ImageNet.

    Raises:
      UserError: it is of another size.
    """
    old, new = _by_path(backbone), _by_path({name: tree.get("backbone", {}) for name, tree in variables.items()})
    wrong = sorted(old.keys() ^ new.keys()) or [path for path in new if old[path].shape != new[path].shape]
    if wrong:
        raise UserError(f"the backbone is of another size: {len(wrong)} entries differ, such as {wrong[0]}")
    return {name: {**tree, "backbone": part} if (part := backbone[name]) else tree for name, tree in variables.items()}


def _by_path(variables: dict[str, Any]) -> dict[str, Array]:
    flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(variables))
    return {"/".join(path): leaf for path, leaf in flat.items()}


def _with_rows(axis: int, old: Array, new: Array, pairs: Sequence[tuple[int, int]], counts: tuple[int, int]) -> Array:
    """``new`` with the rows of known classes, along an axis, from ``old``.

    Args:
      counts: classes of the new model and the old one; rows behind them are of no class.
    """
    spare = min(new.shape[axis] - counts[0], old.shape[axis] - counts[1])
    pairs = [*pairs, *((counts[0] + i, counts[1] + i) for i in range(spare))]
    if not pairs:
        return new
    to, source = (np.array(column) for column in zip(*pairs, strict=True))
    rows, known = jnp.moveaxis(jnp.asarray(new), axis, 0), jnp.moveaxis(jnp.asarray(old), axis, 0)
    return jnp.moveaxis(rows.at[to].set(known[source]), 0, axis)
