"""Self-describing checkpoint directories, written by Orbax and replaced as a whole.

::

    last/ or best/
      metadata.json   configuration, class names, category ids, preprocessing, origin, epoch, AP
      weights/        the averaged weights: {"params", "batch_stats"}
      training/       `last` only: everything else a resumed run needs

A directory is written beside its target, brought to the disk and then swapped in by two renames, so a process killed or
a power cut at any moment leaves a whole checkpoint: either under the name, or, between the renames, at
``replaced_path``, where ``settled`` finds it. A disk that is full leaves the previous one. ``stored`` says how
descriptions of other versions are read.
Arrays are stored from the host without device layout: any number of devices of any kind can read them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dfine_jax.config import Config
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Classes
from dfine_jax.errors import UserError
from dfine_jax.evaluation.score import Metrics
from dfine_jax.families import of, sections
from dfine_jax.system import stored
from dfine_jax.system.files import read_json, replaced_path, sync_folder, sync_tree, telling, told, write_whole
from dfine_jax.system.finite import not_finite
from dfine_jax.training.run import hosts
from dfine_jax.training.run.stages import Progress
from dfine_jax.training.step.state import TrainState, ema_variables

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What weights need to be used and judged without the program that made them."""

    config: Config
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # ids of the annotation files, by class index
    source_file: str = ""  # file the weights were converted or started from
    source_sha256: str = ""
    licence: str = ""
    num_images: int = 0  # of the training set; 0: not known
    epoch: int = 0  # finished epochs
    ap: float | None = None  # COCO AP on the validation set
    preprocessing: Preprocess | None = None  # as stored; None: the standard one at the size of the configuration
    source_entry: str = ""  # where the weights stood in source_file, for example ema.module
    best_threshold: float | None = None  # score of the best F1 on the validation set

    @property
    def classes(self) -> Classes:
        """Names and ids by class index."""
        return Classes(self.class_names, self.category_ids)

    @property
    def preprocess(self) -> Preprocess:
        """How pictures become input."""
        model = self.config.model
        return self.preprocessing or of(model).preprocess(model, self.config.data)

    @property
    def input_size_px(self) -> tuple[int, int]:
        """(height, width) the model was trained at."""
        return self.preprocess.height_px, self.preprocess.width_px


def judged(metadata: Metadata, epoch: int, metrics: Metrics | None) -> Metadata:
    """The description after an epoch; AP and threshold are of its evaluation, if there was one."""
    best_by = metadata.config.train.best_by
    ap, threshold = (metrics.deciding_ap(best_by), metrics.deciding_threshold(best_by)) if metrics else (None, None)
    return dataclasses.replace(metadata, epoch=epoch, ap=ap, best_threshold=threshold)


def save_weights(path: str | Path, variables: dict[str, PyTree], metadata: Metadata) -> None:
    """Write a checkpoint directory with weights only, replacing the one there."""
    _write(Path(path), {"weights": variables}, metadata_json(metadata))


def save_training(path: str | Path, state: TrainState, metadata: Metadata, progress: Progress) -> None:
    """Write a checkpoint directory that a run can continue from, replacing the one there."""
    training = {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": _numbered(state.opt_state),
        "ema_updates": state.ema_updates,
        "ema_shift": state.ema_shift,
        "key": jax.random.key_data(state.key),
    }
    text = metadata_json(metadata, progress=dataclasses.asdict(progress))
    _write(Path(path), {"weights": ema_variables(state), "training": training}, text)


def load_metadata(path: str | Path) -> Metadata:
    """The description of a checkpoint directory.

    Raises:
      UserError: not a checkpoint directory, or its description is damaged or of a later version.
    """
    return _read_metadata(settled(path))[0]


def load_weights(path: str | Path) -> tuple[dict[str, PyTree], Metadata]:
    """``{"params", "batch_stats"}`` as NumPy arrays, and the description.

    Raises:
      UserError: as ``load_metadata``, or the arrays cannot be read or have values that are not finite.
    """
    path = settled(path)
    metadata, _ = _read_metadata(path)
    weights = _restore(path / "weights")
    _check_finite(weights, path)
    return weights, metadata


def load_training(path: str | Path, template: TrainState) -> tuple[TrainState, Metadata, Progress]:
    """Continue a run: the state, as NumPy arrays in the structure of ``template``.

    Raises:
      UserError: no training state there, or it is of another model or optimiser.
    """
    path = settled(path)
    metadata, raw = _read_metadata(path)
    if "progress" not in raw or not (path / "training").is_dir():
        raise UserError(f"{path} holds weights only; a run is resumed from its 'last' checkpoint")
    weights, training = _restore(path / "weights"), _restore(path / "training")
    _check_finite(weights, path)
    _check_finite({"params": training["params"], "batch_stats": training["batch_stats"]}, path)
    leaves = training["opt_state"]
    if set(leaves) != set(_numbered(template.opt_state)):
        raise UserError(f"{path} was written with another optimiser; start a new run with --weights {path}")
    opt_state = jax.tree.unflatten(jax.tree.structure(template.opt_state), [leaves[name] for name in sorted(leaves)])
    state = dataclasses.replace(
        template,
        step=training["step"],
        params=training["params"],
        batch_stats=training["batch_stats"],
        opt_state=opt_state,
        ema_params=weights["params"],
        ema_batch_stats=weights["batch_stats"],
        ema_updates=training.get("ema_updates", training["step"]),  # early files count both as one
        ema_shift=training.get("ema_shift", np.zeros((), np.float32)),
        key=jax.random.wrap_key_data(training["key"]),
    )
    if difference := _difference(template, state):
        raise UserError(f"{path} does not fit the configuration: {difference}")
    progress = stored.build(Progress, raw["progress"], path / "metadata.json", stored.version_of(raw))
    return state, metadata, progress


def settled(path: str | Path) -> Path:
    """The checkpoint directory itself, or what an interrupted replacement left in its place.

    Raises:
      UserError: there is none.
    """
    path = Path(path)
    for candidate in (path, replaced_path(path)):
        if (candidate / "metadata.json").is_file():
            return candidate
    inside = [name for name in ("best", "last") if (path / name / "metadata.json").is_file()]
    if inside:
        raise UserError(f"{path} is a run, not a checkpoint; give {' or '.join(str(path / name) for name in inside)}")
    raise UserError(f"{path} is not a checkpoint: expected a folder with metadata.json and weights/")


def _numbered(tree: PyTree) -> dict[str, Any]:
    """Leaves under their position: optimiser states mix tuples and dicts, which storage would not keep apart."""
    return {f"{index:05d}": leaf for index, leaf in enumerate(jax.tree.leaves(tree))}


def _write(path: Path, trees: dict[str, PyTree], metadata: str) -> None:
    new, old = path.with_name(f".{path.name}.unfinished"), replaced_path(path)
    with telling(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not path.exists():
            old.rename(path)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
    with contextlib.ExitStack() as undo, _telling_full(path):
        undo.callback(shutil.rmtree, new, ignore_errors=True)
        new.mkdir()
        for name, tree in trees.items():
            with _checkpointer() as checkpointer:
                checkpointer.save((new / name).absolute(), hosts.on_host(tree))
        write_whole(new / "metadata.json", metadata)
        sync_tree(new)  # all of it is on the disk before anything is renamed
        undo.pop_all()
    with telling(path):
        sync_folder(path.parent)
        if path.exists():
            path.rename(old)
        new.rename(path)
        sync_folder(path.parent)  # the new one is found under its name before the old one goes
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _telling_full(path: Path) -> Iterator[None]:
    """What goes wrong while a checkpoint is written, in one line, instead of the traces that the array storage logs."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except (OSError, ValueError, UserError) as error:
        kept = "the one before it is kept" if path.exists() else "there is none before it"
        raise UserError(f"{path} cannot be written, {kept}: {_reason(error)}") from error
    finally:
        log.setLevel(level)


def _reason(error: Exception) -> str:
    """Why arrays were not written; the storage hides the error of the system in its own."""
    if not isinstance(error, OSError) and (hidden := re.search(r"os_error_code='(\d+)'", str(error))):
        error = OSError(int(hidden[1]), os.strerror(int(hidden[1])))
    if isinstance(error, OSError):
        return str(told(error))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _checkpointer() -> ocp.Checkpointer:
    """For this process alone: without waiting for the other hosts, if there are any."""
    here = hosts.index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"host{here}"
    )
    if hosts.count() == 1:
        return ocp.PyTreeCheckpointer()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _restore(path: Path) -> dict[str, PyTree]:
    if not path.is_dir():
        raise UserError(f"{path.parent} is damaged: {path.name}/ is missing; take another checkpoint")
    try:
        with _checkpointer() as checkpointer:
            return checkpointer.restore(path.absolute())
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}); the checkpoint is damaged, take another one") from error


def metadata_json(metadata: Metadata, **extra: Any) -> str:
    """A description as it is stored, with other values beside it; ``metadata_from`` reads it."""
    values = {
        **stored.stamp(),
        **dataclasses.asdict(metadata),
        "input_size_px": metadata.input_size_px,
        "method": metadata.config.train.method,
        "activation": metadata.config.model.decoder_activation,
        "preprocessing": metadata.preprocess.to_dict(),
        **extra,
    }
    return json.dumps(values, indent=2) + "\n"


def _read_metadata(path: Path) -> tuple[Metadata, dict[str, Any]]:
    file = path / "metadata.json"
    try:
        content = read_json(file)
    except UserError as error:
        raise UserError(f"{file} cannot be read ({error}); the checkpoint is damaged, take another one") from error
    return metadata_from(content, file)


def metadata_from(content: Any, where: object) -> tuple[Metadata, dict[str, Any]]:
    """A description from what its JSON holds, and the whole of that in today's form.

    Args:
      where: it stands, for messages.

    Raises:
      UserError: it is damaged or of a later version.
    """
    raw = stored.current(content, where)
    # Beside the description stand values for other programs, which are in it already.
    fields = {field.name for field in dataclasses.fields(Metadata)}
    described = {k: v for k, v in raw.items() if k in fields}
    metadata = stored.build(Metadata, described, where, stored.version_of(raw), sections)
    if metadata.preprocessing == dataclasses.replace(metadata, preprocessing=None).preprocess:
        metadata = dataclasses.replace(metadata, preprocessing=None)
    return metadata, raw


def _check_finite(variables: dict[str, PyTree], path: Path) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    if wrong := not_finite({"/".join(str(key.key) for key in where): np.asarray(leaf) for where, leaf in leaves}):
        raise UserError(f"{path}: {wrong}")


def _difference(expected: PyTree, found: PyTree) -> str:
    """Leaves that are missing, unexpected or of another shape, in words; empty when there are none."""
    a, b = (
        {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (expected, found)
    )
    wrong = [f"missing {k}" for k in a.keys() - b.keys()] + [f"unexpected {k}" for k in b.keys() - a.keys()]
    wrong += [f"{k} is {b[k]}, not {a[k]}" for k in a.keys() & b.keys() if a[k] != b[k]]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return ", ".join(sorted(wrong)[:3]) + more
