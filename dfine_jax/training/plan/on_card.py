"""The train step and inference compiled for a graphics card that need not be there.

    python -m dfine_jax.training.plan.on_card < question.json

NVIDIA's compiler plugin of JAX takes a description of a card instead of the card. What it makes has the memory and the
operations of the program that the card would run, up to the choice among equal kernels, which a real card makes by
trying them. ``measure`` asks a process of its own, because flags of the compiler are read once.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any, Literal

from dfine_jax.config import Config
from dfine_jax.errors import UserError
from dfine_jax.families import sections
from dfine_jax.system.config_values import from_dict
from dfine_jax.system.installed import pip_install
from dfine_jax.training.plan.cards import find_card, target_text
from dfine_jax.training.plan.launches import Launches, read_launches

PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
# No card to try kernels on, and no such choice among libraries and generated products.
_FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"


@dataclasses.dataclass(frozen=True)
class Question:
    """What to compile: sizes are those of a device.

    ``config`` is taken as it is but for ``loss.assignment``: SciPy's runs on the host and cannot be compiled ahead, so
    matching is on the device.
    """

    config: Config
    card: str
    batch: int
    slots: int = 20  # ground-truth boxes per image
    devices: int = 1
    program: Literal["train", "predict"] = "train"


@dataclasses.dataclass(frozen=True)
class Answer:
    """A compiled program."""

    peak_bytes: int  # in- and outputs included
    temporary_bytes: int
    memory_bytes: int  # of the card
    launches: Launches
    compile_seconds: float


def measure(question: Question) -> Answer:
    """Compile in another process; minutes.

    Raises:
      UserError: the card is not known, the plugin is not installed, or the compiler fails.
    """
    find_card(question.card)
    if not any(map(importlib.util.find_spec, PLUGINS)):
        raise UserError(f"programs for NVIDIA cards need their compiler: {pip_install('cuda')} (no card is needed)")
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
    # Unfiltered, because JAX ends a shortened traceback with a note of its own, and the last line is what is told.
    settings = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_TRACEBACK_FILTERING": "off"}
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(dataclasses.asdict(question)),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | settings,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the program for {question.card} could not be compiled: {last}")
    values = json.loads(done.stdout.splitlines()[-1])
    return Answer(**{**values, "launches": Launches(**values["launches"])})


def fits(answer: Answer) -> bool:
    """Whether the card holds it: the driver and the libraries' handles take up to 1 GiB, fragmentation a twentieth."""
    return answer.peak_bytes * 1.05 <= answer.memory_bytes - (1 << 30)


def _compile(question: Question) -> Answer:
    import time

    from jax.experimental import topologies

    from dfine_jax.training.step.kept_programs import peak_bytes

    topology = topologies.get_topology_desc(
        "", "cuda", target_config=target_text(find_card(question.card)), topology=f"1x1x{question.devices}"
    )
    started = time.perf_counter()
    lowered = _lowered(question, topology.devices)
    compiled = lowered.compile()
    return Answer(
        peak_bytes=peak_bytes(compiled),
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
        memory_bytes=find_card(question.card).memory_bytes,
        launches=read_launches(compiled.as_text()),
        compile_seconds=time.perf_counter() - started,
    )


def _lowered(question: Question, devices: Any) -> Any:
    import jax

    from dfine_jax.data.load.batch import Batch, batch_layout
    from dfine_jax.families import of
    from dfine_jax.training.step.optimizer import make_optimizer
    from dfine_jax.training.step.state import create_state
    from dfine_jax.training.step.step import make_eval_step, make_train_step

    config = question.config
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, assignment="device"))
    family, size_px = of(config.model), (config.data.height_px, config.data.width_px)
    tx, key = make_optimizer(config.model, config.optim), jax.random.key(0)
    state = jax.eval_shape(lambda: create_state(family.init(config.model, key), tx, key))
    layout = batch_layout(question.batch, *size_px, question.slots, family.mask_stride(config.model))
    arrays: Any = [jax.ShapeDtypeStruct((question.devices, *shape), dtype) for shape, dtype in layout]
    batch = Batch(*arrays)
    if question.program == "predict":
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        given = batch if config.train.val_loss else batch.images
        return make_eval_step(config, devices, with_loss=config.train.val_loss).lower(variables, given)
    return make_train_step(config, tx, devices=devices).lower(state, batch)


def main() -> None:
    """Answer the question on standard input, in JSON."""
    values = json.load(sys.stdin)
    question = Question(**{**values, "config": from_dict(Config, values["config"], sections=sections)})
    sys.stdout.write(json.dumps(dataclasses.asdict(_compile(question))) + "\n")


if __name__ == "__main__":
    main()
