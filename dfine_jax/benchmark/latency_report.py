"""Measurements of ``latency`` as a table, JSON and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dfine_jax.benchmark.latency import Measurement, percentiles
from dfine_jax.pages.charts import Bar, Bars
from dfine_jax.pages.page import Commands, Facts, Files, Section, Table, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST_APART = 0.005  # of accuracies, from which points show more than text


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
    """End-to-end latency as bars (median; the whiskers reach to p95), accuracy as text; against each other as points.

    The points are left out where the accuracies are too much alike to be told apart.
    """
    from matplotlib.figure import Figure

    from dfine_jax.evaluation.plots import COLOURS

    aps = [m.ap for m in measurements if m.ap is not None and m.ap >= 0]
    apart = len(aps) > 1 and max(aps) - min(aps) > _LEAST_APART
    height = 0.62 * len(measurements) + 1.6
    drawn = Figure(figsize=(8, height + (4 if apart else 0)), layout="constrained")
    shares = [height, 4] if apart else [1]
    axes, *below = drawn.subplots(len(shares), 1, squeeze=False, height_ratios=shares).ravel()
    rows = range(len(measurements))
    colours = [COLOURS[row % len(COLOURS)] for row in rows]
    times = [percentiles(m.end_to_end_ms) for m in measurements]
    late = [[0.0] * len(times), [time["p95"] - time["p50"] for time in times]]
    axes.barh(rows, [time["p50"] for time in times], xerr=late, color=colours, height=0.6, capsize=3)
    for row, (m, time) in enumerate(zip(measurements, times, strict=True)):
        axes.annotate(_told(m), (time["p95"], row), (6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(rows, [m.contender.name for m in measurements], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(time["p95"] for time in times))
    axes.set_xlabel("end-to-end latency, ms (p50, whisker to p95)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, axis="x")
    for points in below:
        for m, time, colour in zip(measurements, times, colours, strict=True):
            if m.ap is not None:
                points.plot(time["p50"], m.ap, "o", color=colour, label=m.contender.name)
        points.set(xlabel="end-to-end latency, ms (p50)", ylabel="COCO AP of the timed detections")
        points.set_xlim(left=0)
        points.margins(0.12)
        points.grid(alpha=0.3)
        points.legend(fontsize=8)
    return drawn


def _told(m: Measurement) -> str:
    """What stands beside a bar."""
    known = (("AP", m.ap), ("mask AP", m.mask_ap))
    parts = [f"{percentiles(m.end_to_end_ms)['p50']:.3g} ms"]
    return ", ".join(parts + [f"{name} {ap:.3f}" for name, ap in known if ap is not None and ap >= 0])


def _bar(m: Measurement, time: Mapping[str, float], with_ap: bool) -> Bar:
    text = f"{time['p50']:.3g} ms, p95 {time['p95']:.3g}, p99 {time['p99']:.3g}"
    if with_ap and m.ap is not None and m.ap >= 0:
        text += f", AP {m.ap:.3f}"
    return Bar(m.contender.name, time["p50"], text, time["p95"])


def benchmark_page(
    measurements: Sequence[Measurement],
    hardware: Mapping[str, Any],
    images: str,
    notes: str,
    command: str,
    files: Sequence[tuple[str, str]],
) -> str:
    """Everything that was measured, as a page.

    Args:
      notes: lines about classes that do not count.
      command: that measured it.
      files: beside the page, and what they hold.
    """
    bars = {}
    for name, values in (("File to detections", "end_to_end_ms"), ("Network alone", "raw_ms")):
        bars[name] = [_bar(m, percentiles(getattr(m, values)), values == "end_to_end_ms") for m in measurements]
    first, with_masks = measurements[0], any(m.mask_ap is not None for m in measurements)
    header = ("model", "AP", *(["mask AP"] if with_masks else []), "ratio", "load s", "first s", "MiB", "MB")
    rows = []
    for m in measurements:
        shown = (m.ap, m.mask_ap) if with_masks else (m.ap,)
        precision = ("-" if ap is None or ap < 0 else f"{ap:.4f}" for ap in shown)
        cost = f"{m.load_s:.1f}", f"{m.first_run_s:.2f}", f"{m.memory_mib:.0f}", f"{m.file_mb:.1f}"
        rows.append((m.contender.name, *precision, f"{m.ratio(first):.3f}", *cost))
    text = f"{len(first.end_to_end_ms)} end-to-end runs on {images}, {len(first.raw_ms)} raw runs, interleaved. "
    text += "Bars are medians, thin lines reach to p95."
    cells, throughput = _throughput_rows(measurements)
    where = [(m.contender.name, ", ".join(f"{k} {v}" for k, v in m.ran_on.items())) for m in measurements]
    ratio = (
        "Ratio is the raw time over that of the first model; MiB is the peak of the process, MB the file. AP is that "
    )
    ratio += "of the timed detections." if any(m.ap is not None for m in measurements) else "of annotated data only."
    sections = [
        Section("Latency", text, [Bars(name, "milliseconds", each) for name, each in bars.items()]),
        Section("Accuracy and cost", f"{ratio} {notes}".strip(), [Table(header, rows, broad=True)]),
        Section(
            "Throughput",
            "Images per second." if cells else "Not measured.",
            [Table(throughput[0], throughput[1:], broad=True)] if cells else [],
        ),
        Section("Where it ran", "", [Facts([(k, str(v)) for k, v in hardware.items()]), Facts(where)]),
        Section("Go on", "", [Commands([("measure again", command)]), Files(files)]),
    ]
    return page("Benchmark", f"{len(measurements)} models on {hardware.get('gpu', hardware['cpu'])}", sections)


def _throughput(measurements: Sequence[Measurement]) -> list[str]:
    cells, rows = _throughput_rows(measurements)
    return _aligned(rows) if cells else ["images per second: not measured"]


def _throughput_rows(measurements: Sequence[Measurement]) -> tuple[list[tuple[int, int]], list[list[str]]]:
    """Numbers of threads and images, and a table of images per second, its header first."""
    cells = sorted({(int(c["threads"]), int(c["batch"])) for m in measurements for c in m.throughput})
    rows = [["images per second", *(f"{t} threads, batch {b}" if t else f"batch {b}" for t, b in cells)]]
    for m in measurements:
        known = {(int(c["threads"]), int(c["batch"])): c["images_per_s"] for c in m.throughput}
        rows.append([m.contender.name, *(f"{known[c]:.1f}" if c in known else "-" for c in cells)])
    return cells, rows


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
