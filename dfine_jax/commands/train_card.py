"""``dfine train --dry-run --for CARD``: whether the step of a plan fits a graphics card, without one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dfine_jax.errors import UserError
from dfine_jax.training.plan.cards import find_card

if TYPE_CHECKING:
    from dfine_jax.config import Config

_GIB = 1 << 30


def check_card(name: str, *, dry_run: bool) -> None:
    """UserError unless the card is known and only rehearsed; then JAX is told to look for no card of this machine."""
    find_card(name)
    if not dry_run:
        raise UserError(f"--for {name} is for --dry-run; training uses the devices that are there")
    import jax

    # Looking for one without a driver, the plugin for NVIDIA's cards writes two tracebacks to the console.
    jax.config.update("jax_platforms", "cpu")


def card_notes(config: Config, name: str, sizes_px: Sequence[tuple[int, int]], slots: int) -> list[str]:
    """Memory and launches of the step at the largest of the sizes, for one card and the whole batch.

    Raises:
      UserError: the compiler for NVIDIA's cards is not installed, or it fails.
    """
    from dfine_jax.training.plan.on_card import Question, fits, measure
    from dfine_jax.training.step.programs import less_memory

    height_px, width_px = max(sizes_px, key=math.prod)
    data = dataclasses.replace(config.data, height_px=height_px, width_px=width_px)
    batch = config.train.batch_size
    answer = measure(Question(dataclasses.replace(config, data=data), name, batch, slots))
    counts = answer.launches
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.kinds.items(), key=lambda item: -item[1]))
    cures = f"it does not fit: take a smaller --batch-size, or {less_memory(config.model)}"
    verdict = "it fits" if fits(answer) else cures
    lines = [
        f"compiled for one {find_card(name).title} in {answer.compile_seconds:.0f} s, nothing was run: {height_px}x"
        f"{width_px}, batch {batch}, {config.model.precision}, matching on the device",
        f"memory of a train step: {answer.peak_bytes / _GIB:.2f} of {answer.memory_bytes / _GIB:.1f} GiB, "
        f"{answer.temporary_bytes / _GIB:.2f} of it for intermediate results; " + verdict,
        f"launches of a train step: {counts.total:,} ({kinds})",
    ]
    if counts.float64 or counts.host:
        lines.append(f"{counts.float64} operations in float64 and {counts.host} that wait for the host, which are slow")
    return lines
