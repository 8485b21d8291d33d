"""``dfine train --resume``: the configuration of the run, with the few changes it can take on the way."""

from __future__ import annotations

import argparse
import dataclasses

from dfine_jax.config import Config, LogConfig
from dfine_jax.errors import UserError
from dfine_jax.system.config_values import override

# They change no number but by rounding, or only when the run ends; train.accumulate also what batch norm sees.
_CHANGEABLE = (
    *(f"log.{field.name}" for field in dataclasses.fields(LogConfig)),
    "data.workers",
    *(
        f"train.{name}"
        for name in ("remat", "accumulate", "eval_batch_size", "log_every", "checkpoint_every", "val_loss")
    ),
    *(f"train.{name}" for name in ("checkpoint_steps", "max_skipped_steps", "patience", "target_ap")),
)
_OPTIONS = ("weights", "activation", "backbone", "method", "task", "size", "epochs", "batch_size", "augment")


def check_changes(options: argparse.Namespace) -> None:
    """Only what a run can take is given.

    Raises:
      UserError: something else is; the message lists what can be.
    """
    given = [f"--{name.replace('_', '-')}" for name in _OPTIONS if getattr(options, name)]
    given += [text for text in options.overrides if text.partition("=")[0].strip() not in _CHANGEABLE]
    if given:
        if (options.out / "last").is_dir():
            override(_stored_config(options), options.overrides)  # what is no key at all is told as that
        raise UserError(
            f"--resume continues with the settings of the run; leave out {', '.join(given)} (a run can take other "
            f"values of {', '.join(_CHANGEABLE)})"
        )


def resumed_config(options: argparse.Namespace) -> tuple[Config, list[str]]:
    """Configuration of the run to continue, and lines that say what is changed.

    Raises:
      UserError: there is nothing to continue, it is of another variant, or a key or value is wrong.
    """
    from dfine_jax.families import recipe_name

    stored = _stored_config(options)
    name = recipe_name(stored.model)
    if "." not in options.recipe and options.recipe not in (name, f"{stored.model.family}-{stored.model.variant}"):
        raise UserError(f"the run in {options.out} is of variant {name}, not {options.recipe}")
    config, notes = override(stored, options.overrides), []
    for key in _CHANGEABLE:
        section, name = key.split(".")
        old, new = (getattr(getattr(either, section), name) for either in (stored, config))
        if new != old:
            part = config.train.batch_size // config.train.accumulate
            norm = f"; batch norm now sees {part} images at a time" if key == "train.accumulate" else ""
            notes.append(f"from here on {key}={new!r} (was {old!r}){norm}")
    return config, notes


def _stored_config(options: argparse.Namespace) -> Config:
    from dfine_jax.training.run.checkpoint import load_metadata
    from dfine_jax.training.run.setup import claim

    claim(options.out, True)
    return load_metadata(options.out / "last").config
