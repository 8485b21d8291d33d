"""Measurements of ``latency`` as a table, JSON and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dfine_jax.benchmark.latency import Measurement, percentiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_dict(
    measurements: Sequence[Measurement], hardware: Mapping[str, Any], images: str, pause_ms: float = 0.0
) -> dict[str, Any]:
    """Everything that was measured, without the detections."""
    return {
        "hardware": dict(hardware),
        "images": images,
        "pause_ms": pause_ms,
        "models": [
            {
                "model": m.contender.model,
                "ran_on": m.ran_on,
                "precision": m.precision,
                "input_size_px": list(m.input_size_px),
                "ap": m.ap,
                "mask_ap": m.mask_ap,
                "end_to_end_ms": {**percentiles(m.end_to_end_ms), "runs": len(m.end_to_end_ms)},
                "raw_ms": {**percentiles(m.raw_ms), "runs": len(m.raw_ms), "batch": m.raw_batch},
                "raw_ratio_to_first": m.ratio(measurements[0]),
                "throughput": m.throughput,
                "load_s": m.load_s,
                "first_run_s": m.first_run_s,
                "peak_memory_mib": m.memory_mib,
                "file_mb": m.file_mb,
            }
            for m in measurements
        ],
    }


def table(measurements: Sequence[Measurement], hardware: Mapping[str, Any], images: str, pause_ms: float = 0.0) -> str:
    """Text for people: latency, cost, throughput, hardware."""
    with_masks = any(m.mask_ap is not None for m in measurements)
    header = ("end to end p50", "p95", "p99", "raw p50", "p95", "p99", "ratio", "load s", "first s", "MiB", "MB")
    rows = [["model", "AP", *(["mask AP"] if with_masks else []), *header]]
    for m in measurements:
        times = [
            f"{v:.3g}" if v < 100 else f"{v:.0f}" for t in (m.end_to_end_ms, m.raw_ms) for v in percentiles(t).values()
        ]
        shown = (m.ap, m.mask_ap) if with_masks else (m.ap,)
        precision = ["-" if ap is None or ap < 0 else f"{ap:.4f}" for ap in shown]
        rows.append(
            [m.contender.name, *precision, *times, f"{m.ratio(measurements[0]):.3f}", f"{m.load_s:.1f}"]
            + [f"{m.first_run_s:.2f}", f"{m.memory_mib:.0f}", f"{m.file_mb:.1f}"]
        )
    first = measurements[0]
    pause = f", each after a pause of {pause_ms:g} ms" if pause_ms else ""
    lines = [
        f"milliseconds; {len(first.end_to_end_ms)} end-to-end runs on {images} (file to detections), "
        f"{len(first.raw_ms)} raw runs (network alone), interleaved{pause}; "
        "ratio: raw time over that of the first model",
        "",
        *_aligned(rows),
        "",
        *_throughput(measurements),
        "",
        *(f"{m.contender.name}: {', '.join(f'{k} {v}' for k, v in m.ran_on.items())}" for m in measurements),
        ", ".join(f"{name} {value}" for name, value in hardware.items()),
    ]
    return "\n".join(lines) + "\n"


def figure(measurements: Sequence[Measurement], title: str) -> Figure:
    """Accuracy against end-to-end latency (median; the whiskers reach to p95)."""
    from matplotlib.figure import Figure

    from dfine_jax.evaluation.plots import COLOURS

    drawn = Figure(figsize=(7, 4.5), layout="constrained")
    axes = drawn.subplots()
    for number, m in enumerate(measurements):
        times = percentiles(m.end_to_end_ms)
        late = [[0.0], [times["p95"] - times["p50"]]]
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(
            [times["p50"]], [m.ap or 0.0], xerr=late, fmt="o", capsize=3, color=colour, label=m.contender.name
        )
    axes.set_xlabel("end-to-end latency, ms (p50, whisker to p95)")
    axes.set_ylabel("COCO AP of the timed detections")
    axes.set_title(title, fontsize=10)
    axes.set_xlim(left=0)
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return drawn


def _throughput(measurements: Sequence[Measurement]) -> list[str]:
    cells = {(int(c["threads"]), int(c["batch"])) for m in measurements for c in m.throughput}
    if not cells:
        return ["images per second: not measured"]
    rows = [["images per second", *(f"{t} threads, batch {b}" if t else f"batch {b}" for t, b in sorted(cells))]]
    for m in measurements:
        known = {(int(c["threads"]), int(c["batch"])): c["images_per_s"] for c in m.throughput}
        rows.append([m.contender.name, *(f"{known[c]:.1f}" if c in known else "-" for c in sorted(cells))])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
