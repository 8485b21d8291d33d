"""Numbers of an evaluation as sections of a page, from what ``metrics.json`` holds: fresh, or of a run long ago."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dfine_jax.evaluation.precision_curves import curve_section
from dfine_jax.pages.charts import Chart, Curve
from dfine_jax.pages.page import Confusion, Facts, FigureFile, Item, Section, Table

MAX_IN_TABLE = 24  # classes up to which confusions are a table; beyond, a picture
_AP = (("AP", "ap"), ("AP, IoU 0.50", "ap50"), ("AP, IoU 0.75", "ap75"), ("AP, small objects", "ap_small"))
_AP += (("AP, medium objects", "ap_medium"), ("AP, large objects", "ap_large"), ("AR, 100 detections", "ar_100"))
_OF_CLASS = ("AP", "precision", "recall", "F1", "found", "missed", "false", "best F1", "at")
_KINDS = {"": "boxes", "mask_": "masks"}


def evaluation_sections(values: Mapping[str, Any], pictures: str | None = None) -> list[Section]:
    """Result, thresholds, classes and confusions, of boxes and, where there are any, of masks.

    Args:
      values: of ``Metrics.to_dict``.
      pictures: folder of confusion.png, as a path from the page; None: there is none.
    """
    prefixes = [prefix for prefix in _KINDS if f"{prefix}report" in values]
    return [
        _result(values, prefixes),
        *(section for prefix in prefixes for section in _of_kind(values, prefix, len(prefixes) > 1, pictures)),
    ]


def finds_something(report: Mapping[str, Any]) -> bool:
    """Whether any detection is right at any threshold."""
    return report["true_positives"] > 0


def _result(values: Mapping[str, Any], prefixes: Sequence[str]) -> Section:
    named = [_KINDS[prefix] for prefix in prefixes] if len(prefixes) > 1 else ["value"]
    rows = [(name, *(_number(values.get(prefix + key)) for prefix in prefixes)) for name, key in _AP]
    items: list[Item] = [Table(("COCO", *named), rows)]
    for prefix, name in zip(prefixes, named, strict=True):
        report = values[f"{prefix}report"]
        what = f", {name}" if len(prefixes) > 1 else ""
        if not finds_something(report):
            nothing = "No detection is right at any threshold: training longer, or the classes of the data, may help."
            items.append(Facts([(f"At a threshold{what}", nothing)]))
            continue
        counts = f"{report['true_positives']} found, {report['false_negatives']} missed, "
        counts += f"{report['false_positives']} false"
        ratios = [("precision", "precision"), ("recall", "recall"), ("F1", "f1"), ("overlap, errors as 0", "iou")]
        facts = [(f"Best threshold{what}", f"{report['best_threshold']:.2f}"), ("objects", counts)]
        items.append(Facts(facts + [(shown, _number(report[key])) for shown, key in ratios]))
    text = f"{_counted(values['num_images'], 'image')}, compared in pixels of the original pictures. "
    text += "AP ranks detections as COCO does; at a threshold they are counted, as a user of the detector would."
    return Section("Result", text, items)


def _counted(number: int, of: str) -> str:
    return f"{number} {of}{'' if number == 1 else 's'}"


def _of_kind(values: Mapping[str, Any], prefix: str, several: bool, pictures: str | None) -> list[Section]:
    report, of = values[f"{prefix}report"], f", {_KINDS[prefix]}" if several else ""
    thresholds = Section(
        f"Thresholds{of}",
        "What detections from a score on are right, and how many objects they find. Where the threshold is low, "
        "precision by recall may turn back: more detections, no more objects."
        if finds_something(report)
        else "Nothing is found at any threshold, so there is no curve.",
        _threshold_charts(report) if finds_something(report) else (),
    )
    classes = Section(
        f"Classes{of}",
        f"The lowest AP first; counts are at threshold {report['best_threshold']:.2f}. The last two columns are the "
        "best F1 that the class could have with a threshold of its own.",
        [Table(("class", *_OF_CLASS), _class_rows(values, prefix), broad=True)],
    )
    curves = curve_section(values.get(f"{prefix}precision_by_recall"), of)
    return [thresholds, classes, *curves, _confusion(report, prefix, of, pictures)]


def _threshold_charts(report: Mapping[str, Any]) -> list[Item]:
    curve = report["curve"]
    at = curve["threshold"]
    # Precision is written as 0 where nothing is detected, which is no precision.
    known = [any(curve[name][i] for name in ("precision", "recall")) for i in range(len(at))]
    lines = [
        Curve(name, [(t, v) for t, v, some in zip(at, curve[key], known, strict=True) if some or key != "precision"])
        for name, key in (("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
    ]
    best = report["best_threshold"]
    by_recall = [
        (recall, precision)
        for recall, precision, some in zip(curve["recall"], curve["precision"], known, strict=True)
        if some
    ]
    return [
        Chart("By score threshold", "threshold", lines, (best, f"best F1, {best:.2f}"), x_range=(0, 1)),
        Chart(
            "Precision by recall of all classes together",
            "recall",
            [Curve("thresholds, high to low", by_recall)],
            x_range=(0, 1),
        ),
    ]


def _class_rows(values: Mapping[str, Any], prefix: str) -> list[tuple[str, ...]]:
    report, rows = values[f"{prefix}report"], []
    of_class = values[f"{prefix}per_class"]
    for name in sorted(of_class, key=lambda name: -1 if of_class[name] is None else of_class[name]):
        counted, own = report["per_class"][name], report.get("best_by_class", {}).get(name)
        ratios = (_number(counted[key]) for key in ("precision", "recall", "f1"))
        counts = (str(counted[f"{key}"]) for key in ("true_positives", "false_negatives", "false_positives"))
        best = (_number(own["f1"]), f"{own['threshold']:.2f}") if own and own["f1"] > 0 else ("-", "-")
        rows.append((name, _number(of_class[name]), *ratios, *counts, *best))
    return rows


def _confusion(report: Mapping[str, Any], prefix: str, of: str, pictures: str | None) -> Section:
    *names, _ = report["confusion"]["names"]
    counts = report["confusion"]["counts"]
    heading = f"Confusions{of}"
    if not any(map(any, counts)):
        return Section(heading, "Nothing is annotated and nothing detected.")
    text = f"Objects by what they are detected as, at threshold {report['best_threshold']:.2f}: blue is right, orange "
    text += "is wrong, the stronger the larger its share of the row."
    if not finds_something(report):
        text = "Nothing is found: every object is missed. " + text
    if len(names) <= MAX_IN_TABLE:
        return Section(heading, text, [Confusion(names, counts)])
    if pictures is None:
        return Section(heading, f"Of {len(names)} classes a table is too large to read.")
    caption = "classes with the most errors" if len(names) > MAX_IN_TABLE else "all classes"
    return Section(heading, text, [FigureFile(f"{pictures}{prefix}confusion.png", caption)])


def _number(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.3f}"
