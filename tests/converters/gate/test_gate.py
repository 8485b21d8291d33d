"""The gate accepts what computes the same and refuses what does not, however it is broken."""

from __future__ import annotations

import copy
import itertools
import json
import sys
import types
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest
from conftest import ROOT
from onnx import numpy_helper
from PIL import Image

from dfine_jax import families
from dfine_jax.converters.gate import compare, divergence, gate
from dfine_jax.converters.gate import report as gate_report
from dfine_jax.converters.gate.accuracy import AveragePrecision
from dfine_jax.converters.gate.compare import LIMITS, Rows
from dfine_jax.converters.gate.data import open_data
from dfine_jax.converters.gate.staging import RefusedError, release, staging
from dfine_jax.data.picture.images import Preprocess
from dfine_jax.data.read.dataset import Classes
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError
from dfine_jax.families import light
from dfine_jax.ops.postprocess import Answer, AnswerRules
from dfine_jax.serving.artefact import from_json
from dfine_jax.serving.backends.base import in_view
from dfine_jax.serving.backends.jax_model import JaxBackend

sys.path.append(str(ROOT / "tests"))
import toy_artefact as toy  # noqa: E402

CLASSES = Classes(toy.NAMES, toy.IDS)


@pytest.fixture(scope="module")
def model():
    return toy.toy_model()


@pytest.fixture(scope="module")
def toy_data(tmp_path_factory):
    """Shapes under the toy's class names."""
    return toy.toy_dataset(tmp_path_factory.mktemp("shapes"), num_val=3)


@pytest.fixture(scope="module")
def answers(model):
    """The model, run once for all tests: the gate's pictures are always the same."""
    known: dict[bytes, Answer] = {}
    backend = JaxBackend(*model)

    def answer(images):
        key = images.tobytes()
        if key not in known:
            known[key] = backend.predict(images)
        return known[key]

    return answer


def changed(variables, *path, by):
    """The variables with one number changed."""
    out = copy.deepcopy(jax.tree.map(np.array, variables))
    leaf = out["params"]
    for name in path[:2]:
        leaf = leaf[name]
    leaf[path[2]] += by
    return out


KINDS = [
    {},
    {"input": {"layout": "NHWC"}},
    {"input": {"dtype": "uint8"}},
    {"input": {"batch": 2}},
    {"graph": "complete"},
    {"graph": "complete", "input": {"batch": 8, "dtype": "uint8", "layout": "NHWC"}},
]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_same_function_passes_in_every_form(tmp_path, model, answers, kind, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    path = toy.write_toy(tmp_path / "toy.onnx", model[1], **copy.deepcopy(kind))
    report = gate.check_artefact(path, *model, classes=CLASSES, reference=answers, runtime=runtime)
    assert report.passed, report.table()
    batch = kind.get("input", {}).get("batch")
    assert [c.batch for c in report.comparisons] == ([batch] if batch else [1, 2, 8])
    rows = toy.QUERIES if kind.get("graph") != "complete" else toy.TOP
    assert all(c.rows == 8 * rows and c.box_most_px < 1e-3 and c.score_most < 1e-5 for c in report.comparisons)
    assert report.ran_on["runtime"] == runtime


FAULTS = {
    "stem": ("stem", "kernel", (0, 0, 0, 3), 0.02),
    "score_head": ("score_head", "bias", (1,), 0.01),
    "box_head": ("box_head", "kernel", (2, 1), 0.02),
}


@pytest.mark.parametrize("where", FAULTS)
def test_one_changed_weight_is_refused_and_found(tmp_path, model, answers, where):
    *path, index, by = FAULTS[where]
    file = toy.write_toy(tmp_path / "toy.onnx", changed(model[1], *path, index, by=by))
    report = gate.check_artefact(file, *model, reference=answers)
    assert not report.passed
    assert report.first_divergence and report.first_divergence.startswith(where)


def test_layers_are_found_in_openvino_files_too(tmp_path, model, answers):
    ov = pytest.importorskip("openvino")
    file = toy.write_toy(tmp_path / "toy.onnx", changed(model[1], "box_head", "bias", (0,), by=0.05))
    loaded = ov.Core().read_model(file)
    loaded.set_rt_info(json.dumps(toy.description()), ["dfine_jax"])
    ov.save_model(loaded, tmp_path / "toy.xml", compress_to_fp16=False)
    report = gate.check_artefact(tmp_path / "toy.xml", *model, reference=answers)
    assert report.first_divergence and report.first_divergence.startswith("box_head")


def edited(path, edit):
    loaded = onnx.load(path)
    edit(loaded.graph)
    onnx.save(loaded, path)
    return path


def swap_boxes(graph):
    """Boxes as (y, x, height, width)."""
    graph.initializer.append(numpy_helper.from_array(np.array([1, 0, 3, 2]), "order"))
    graph.node[-1].output[0] = "straight"
    graph.node.append(onnx.helper.make_node("Gather", ["straight", "order"], ["boxes"], axis=2))


def roll_classes(graph):
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 0]), "order"))
    node = next(n for n in graph.node if n.output[0] == "logits")
    node.output[0] = "straight"
    graph.node.append(onnx.helper.make_node("Gather", ["straight", "order"], ["logits"], axis=2))


def mix_batch(graph):
    """Every image gets the boxes of the first: right in batch 1."""
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    graph.node[-1].output[0] = "own"
    graph.node.append(onnx.helper.make_node("Gather", ["own", "first"], ["one"], axis=0))
    graph.node.append(onnx.helper.make_node("Shape", ["own"], ["shape"]))
    graph.node.append(onnx.helper.make_node("Expand", ["one", "shape"], ["boxes"]))


@pytest.mark.parametrize("fault", [swap_boxes, roll_classes, mix_batch], ids=lambda f: f.__name__)
def test_outputs_in_another_order_are_refused(tmp_path, model, answers, fault):
    file = edited(toy.write_toy(tmp_path / "toy.onnx", model[1]), fault)
    report = gate.check_artefact(file, *model, reference=answers)
    assert not report.passed
    if fault is mix_batch:
        assert report.failures[0].startswith("batch 2")
    else:
        assert report.failures[0].startswith("batch 1")
        assert "every layer agrees" in str(report.first_divergence)


def test_transposed_outputs_are_refused(tmp_path, model, answers):
    def transpose(graph):
        graph.node[-1].output[0] = "straight"
        graph.node.append(onnx.helper.make_node("Transpose", ["straight"], ["boxes"], perm=[0, 2, 1]))

    file = edited(toy.write_toy(tmp_path / "toy.onnx", model[1]), transpose)
    report = gate.check_artefact(file, *model, reference=answers)
    assert "outputs have shapes" in report.failures[0] and not report.passed


def test_a_wrong_class_map_and_other_preprocessing_are_refused(tmp_path, model, answers):
    file = toy.write_toy(tmp_path / "toy.onnx", model[1], class_names=["bee", "ant", "cat"])
    report = gate.check_artefact(file, *model, classes=CLASSES, reference=answers)
    assert report.failures == ("class map: class 0 is ('bee', 7) in the file, ('ant', 7) in the model",)
    file = toy.write_toy(tmp_path / "toy.onnx", model[1], category_ids=[1, 2, 3])
    assert not gate.check_artefact(file, *model, classes=CLASSES, reference=answers).passed
    letterbox = {**toy.description()["preprocess"], "resize": "letterbox"}
    file = toy.write_toy(tmp_path / "toy.onnx", model[1], preprocess=letterbox)
    stored = toy.Preprocess(640, 640)
    report = gate.check_artefact(file, *model, classes=CLASSES, preprocess=stored, reference=answers)
    assert "preprocessing: resize is 'letterbox' in the file, 'stretch' in the model" in report.failures


def test_rules_of_answers_that_are_not_the_familys_are_refused(tmp_path, model, answers):
    rfdetr = types.SimpleNamespace(config=light.variant("rfdetr-seg-nano"))
    file = toy.write_toy(tmp_path / "old.onnx", model[1])  # as before rules were stored
    assert gate.check_artefact(file, rfdetr, None, reference=answers).failures == (
        "rules of answers: num_top is 300 in the file, 100 in the model",
        "rules of answers: cut_to_boxes is True in the file, False in the model",
        "rules of answers: clip_boxes is False in the file, True in the model",
        "rules of answers: interpolated is 'probability' in the file, 'logit' in the model",
    )
    rules = families.of(rfdetr.config).answer_rules(rfdetr.config)
    file = toy.write_toy(tmp_path / "new.onnx", model[1], **rules._asdict())
    assert gate.check_artefact(file, rfdetr, None, reference=answers).passed


def test_values_that_are_not_finite_are_refused(tmp_path, model, answers):
    file = toy.write_toy(tmp_path / "toy.onnx", changed(model[1], "box_head", "bias", (0,), by=np.nan))
    report = gate.check_artefact(file, *model, reference=answers)
    assert "outputs of the file hold values that are not finite" in report.failures


def test_average_precision_is_compared_where_there_are_annotations(tmp_path, model, answers):
    data = make_shapes_dataset(tmp_path / "data", num_train=1, num_val=6, size_px=64, seed=0)
    content = json.loads((data / "annotations" / "instances_val.json").read_text())
    names = [category["name"] for category in sorted(content["categories"], key=lambda c: c["id"])]
    _, variables = model
    wide = copy.deepcopy(jax.tree.map(np.array, variables))
    head = wide["params"]["score_head"]  # a fourth class, for the four shapes
    head["kernel"], head["bias"] = (np.concatenate([x, x[..., :1]], -1) for x in (head["kernel"], head["bias"]))
    file = toy.write_toy(tmp_path / "toy.onnx", wide, class_names=names, category_ids=[1, 2, 3, 4])
    truth = {a["image_id"]: a["bbox"] for a in content["annotations"]}
    assert truth

    def reference(images):
        answer = answers(images)
        return answer._replace(logits=np.concatenate([answer.logits, answer.logits[..., :1]], -1))

    report = gate.check_artefact(file, *model, reference=reference, baseline=reference, data=data)
    assert report.passed, report.table()
    assert report.images == f"6 of {data} and 2 generated pictures"
    accuracy = report.accuracy
    assert accuracy and accuracy.images == 6 and accuracy.drop == pytest.approx(0, abs=1e-6)
    assert accuracy.cost == pytest.approx(0, abs=1e-6) and report.to_dict()["accuracy"]["cost"] == accuracy.cost
    assert "AP cost 0.0000 against" in report.table()
    refused = gate.check_artefact(file, *model, reference=reference, data=data, max_ap_drop=-0.5)
    assert refused.failures and refused.failures[0].startswith("AP ")


def test_model_and_file_are_judged_by_the_rules_of_the_file(tmp_path, model, answers, toy_data, monkeypatch):
    seen, judge = [], AveragePrecision.__call__

    def recorded(precision, backend, *rest):
        seen.append(backend.rules)
        return judge(precision, backend, *rest)

    monkeypatch.setattr(AveragePrecision, "__call__", recorded)
    rules = AnswerRules(cut_to_boxes=False, clip_boxes=True, interpolated="logit")
    for stored, expected in (({}, AnswerRules()), (rules._asdict(), rules)):  # without: a file of earlier versions
        file = toy.write_toy(tmp_path / "toy.onnx", model[1], **stored)
        assert gate.check_artefact(file, *model, reference=answers, baseline=answers, data=toy_data).passed
        assert [seen.pop() for _ in ("file", "model", "unreduced model")] == [expected] * 3 and not seen


def test_folder_of_images_without_annotations(tmp_path, model, answers):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        picture = np.random.default_rng(i).integers(0, 255, (40 + i, 70, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
    file = toy.write_toy(tmp_path / "toy.onnx", model[1])
    report = gate.check_artefact(file, *model, reference=answers, data=folder)
    assert report.passed and report.images == f"3 of {folder} and 5 generated pictures" and report.accuracy is None
    with pytest.raises(UserError, match="does not exist"):
        gate.check_artefact(file, *model, reference=answers, data=tmp_path / "nowhere")


def test_pictures_are_never_all_square(tmp_path, model, answers):
    """Width and height exchanged are seen, whatever pictures there are."""
    for i in range(9):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (60, 60, 3), np.uint8)).save(tmp_path / f"{i}.png")
    file = toy.write_toy(tmp_path / "toy.onnx", model[1], graph="complete")
    assert gate.check_artefact(file, *model, reference=answers, data=tmp_path).passed

    def exchange(graph):
        graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "exchanged"))
        node = next(n for n in graph.node if n.input[0] == "original_sizes_px")
        graph.node.insert(0, onnx.helper.make_node("Gather", ["original_sizes_px", "exchanged"], ["turned"], axis=1))
        node.input[0] = "turned"

    report = gate.check_artefact(edited(file, exchange), *model, reference=answers, data=tmp_path)
    assert report.images == f"7 of {tmp_path} and 1 generated picture"
    assert not report.passed


def test_a_limit_on_ap_needs_annotations(tmp_path, model, answers):
    file = toy.write_toy(tmp_path / "toy.onnx", model[1])
    with pytest.raises(UserError, match=r"--max-ap-drop 0.1: AP cannot be measured \(no --data given\)"):
        gate.check_artefact(file, *model, reference=answers, max_ap_drop=0.1)
    data = make_shapes_dataset(tmp_path / "data", num_train=1, num_val=1, size_px=64, seed=0)
    with pytest.raises(UserError, match=r"annotations for train and val, but none for test; add --split train"):
        open_data(data, "test")
    (data / "annotations" / "instances_val.json").unlink()
    with pytest.raises(UserError, match=r"annotations for train, but none for val; add --split train"):
        open_data(data, "val")
    train = data / "annotations" / "instances_train.json"
    train.write_text(json.dumps({**json.loads(train.read_text()), "annotations": []}))
    unlabelled = open_data(data, "train")
    assert unlabelled.dataset is None and len(unlabelled.sources) == 1
    with pytest.raises(UserError, match=r"instances_train.json annotates no object"):
        unlabelled.require_ap(0.1)


def test_an_operating_point_without_annotations_says_so(tmp_path, model, answers):
    file = toy.write_toy(tmp_path / "toy.onnx", model[1])
    report = gate.check_artefact(file, *model, reference=answers, baseline=answers, operating_point={"layers": 1})
    assert "operating point: layers 1; AP cost: not measured; give --data DIR" in report.table()


def test_the_cost_of_an_operating_point_is_limited_too(tmp_path, model, answers, toy_data):
    """The file equals its own model; against the unreduced one it loses all."""
    silent = changed(model[1], "score_head", "bias", slice(None), by=-30)
    file = toy.write_toy(tmp_path / "toy.onnx", silent)
    data = open_data(toy_data, "val")
    assert data.dataset
    records = data.dataset.records

    def perfect(images):
        """What is annotated, picture by picture in order."""
        record = records[next(calls) % len(records)]
        logits, boxes = np.full((1, 10, 3), -9.0), np.full((1, 10, 4), 0.5)
        for i, (left, top, right, bottom) in enumerate(record.boxes_xyxy_px[:10]):
            logits[0, i, record.labels[i]] = 9.0
            boxes[0, i] = np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) / 64
        return logits, boxes

    calls = itertools.count()
    given = {"reference": JaxBackend(model[0], silent).predict, "baseline": perfect, "data": data}
    report = gate.check_artefact(file, model[0], silent, **given, operating_point={"layers": 1})
    assert report.passed and report.to_dict()["accuracy"]["cost"] > 0.3, report.table()
    refused = gate.check_artefact(file, model[0], silent, **given, max_ap_drop=0.3)
    assert "of this operating point is" in refused.failures[0] and "limit 0.3" in refused.failures[0]


def test_a_file_that_fails_while_running_is_refused(tmp_path, model, answers):
    final = tmp_path / "toy.onnx"
    final.write_text("an earlier one")
    with staging(final) as staged:
        toy.bake_batch(toy.write_toy(staged, model[1]))
        report = gate.check_artefact(staged, *model, reference=answers)
        assert len(report.comparisons) == 1 and "fails on images [2, 3, 48, 64]" in report.failures[0]
        with pytest.raises(RefusedError):
            release(staged, final, report)
    assert not final.exists() and not json.loads((tmp_path / "toy.onnx.report.json").read_text())["passed"]


def test_a_file_whose_tensors_cannot_be_computed_is_refused_with_the_reason(tmp_path, model, answers):
    """Runs neither in the gate nor in the search for the first difference."""
    file = toy.bake_batch(toy.write_toy(tmp_path / "toy.onnx", model[1], input={"batch": 2}))
    report = gate.check_artefact(file, *model, reference=answers)
    assert "fails on images [2, 3, 48, 64]" in report.failures[0]
    assert report.first_divergence is None and "tensors cannot be computed" in report.no_divergence
    assert "first difference: not known (its tensors cannot be computed" in report.table()


def test_whatever_fails_before_the_gate_leaves_no_earlier_file(tmp_path):
    for name in ("toy.xml", "toy.bin", "toy.xml.report.txt"):
        (tmp_path / name).write_text("an earlier one, PASSED")
    with pytest.raises(UserError, match="int8 loses all"), staging(tmp_path / "toy.xml") as staged:
        staged.write_text("half of it")
        raise UserError("int8 loses all")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.xml.report.json", "toy.xml.report.txt"]
    report = json.loads((tmp_path / "toy.xml.report.json").read_text())
    assert report["passed"] is False and report["failures"] == ["int8 loses all"]
    assert "REFUSED" in (tmp_path / "toy.xml.report.txt").read_text()


@pytest.mark.parametrize("moves", range(4))
def test_a_process_that_is_killed_leaves_no_mixed_files(tmp_path, model, answers, monkeypatch, moves):
    """Ended after so many of the moves: old and new files never lie together, and no report says PASSED."""
    final = tmp_path / "toy.onnx"
    earlier = [final, tmp_path / "toy.bin", tmp_path / "toy.onnx.report.json", tmp_path / "toy.onnx.report.txt"]
    for file in earlier:
        file.write_text("earlier")
    done = []

    def ending(original):
        def call(path, *args, **kwargs):
            if len(done) == moves and path.name.startswith("toy"):
                raise KeyboardInterrupt
            done.append(path.name)
            return original(path, *args, **kwargs)

        return call

    with staging(final) as staged:
        toy.write_toy(staged, model[1])
        (staged.parent / "toy.bin").write_text("new")
        report = gate.check_artefact(staged, *model, reference=answers)
        monkeypatch.setattr(Path, "replace", ending(Path.replace))
        monkeypatch.setattr(gate_report, "write_whole", ending(gate_report.write_whole))
        with pytest.raises(KeyboardInterrupt):
            release(staged, final, report)
        monkeypatch.undo()
    present = {file.name: file.read_bytes()[:7] == b"earlier" for file in earlier if file.is_file()}
    assert "toy.onnx.report.txt" not in present
    if "toy.onnx" in present:
        assert present["toy.onnx"] == present["toy.bin"]
    assert ("toy.onnx" in present) == (moves >= 2)


def test_what_passes_gets_its_name_and_a_report(tmp_path, model, answers):
    final = tmp_path / "out" / "toy.onnx"
    with staging(final) as staged:
        toy.write_toy(staged, model[1])
        (staged.parent / "toy.bin").write_bytes(b"companion")
        release(staged, final, gate.check_artefact(staged, *model, reference=answers))
    names = sorted(p.name for p in final.parent.iterdir())
    assert names == ["toy.bin", "toy.onnx", "toy.onnx.report.json", "toy.onnx.report.txt"]
    numbers = json.loads((final.parent / "toy.onnx.report.json").read_text())
    assert numbers["passed"] and numbers["comparisons"][2]["batch"] == 8
    assert numbers["limits"]["box_median_px"] == LIMITS["fp32"].box_median_px
    assert "PASSED" in (final.parent / "toy.onnx.report.txt").read_text()


def test_what_fails_keeps_no_name(tmp_path, model, answers):
    final = tmp_path / "toy.onnx"
    final.write_text("an earlier one")
    wrong = changed(model[1], "box_head", "bias", (0,), by=0.5)
    with staging(final) as staged:
        toy.write_toy(staged, wrong)
        report = gate.check_artefact(staged, *model, reference=answers)
        with pytest.raises(UserError, match=r"was refused: batch 1: box error, median.*first difference: box_head"):
            release(staged, final, report)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.onnx.report.json", "toy.onnx.report.txt"]
    assert "REFUSED" in (tmp_path / "toy.onnx.report.txt").read_text()


def rows(seed, n=50, k=4, confident=0):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0, 0.1, (n, k)).astype(np.float32)
    scores[:confident, 0] = 0.9
    return Rows(rng.uniform(0.2, 0.6, (n, 4)).astype(np.float32), scores)


def summary(reference, found, precision="fp32"):
    return compare.summarise(1, [compare.compare_image(reference, found, (480, 640))], LIMITS[precision])


def test_rows_are_paired_whatever_their_order():
    reference = rows(0)
    order = np.random.default_rng(1).permutation(50)
    result = summary(reference, Rows(reference.boxes_cxcywh[order], reference.scores[order]))
    assert result.box_most_px == 0 and result.score_most == 0 and result.cut_rows == 0


def test_errors_are_pixels_of_the_input():
    reference = rows(0)
    moved = reference.boxes_cxcywh.copy()
    moved[:, 1] += 0.001  # of 480
    result = summary(reference, Rows(moved, reference.scores))
    assert result.box_median_px == pytest.approx(0.48, abs=1e-3)
    assert compare.exceeded(result, LIMITS["fp32"]) == [
        "batch 1: box error, median: 0.48 px > 0.01 px",
        "batch 1: box error, 95 % of rows: 0.48 px > 0.05 px",
        "batch 1: box error, all but near-ties: 0.48 px > 0.25 px",
    ]


def test_a_near_tie_of_the_selection_is_left_out_but_no_confident_detection():
    reference, other = rows(0, confident=10), rows(5)
    for row, cut in ((40, 1), (3, 0)):  # an unlikely query, a sure one
        boxes, scores = reference.boxes_cxcywh.copy(), reference.scores.copy()
        boxes[row], scores[row] = other.boxes_cxcywh[row], other.scores[row]
        result = summary(reference, Rows(boxes, scores))
        assert result.cut_rows == cut
        assert bool(compare.exceeded(result, LIMITS["fp32"])) == (not cut)


@pytest.mark.parametrize(
    ("score", "label", "shift", "moved", "passes"),
    [
        (0.5, 0, 0.02, 0.0, True),
        (0.95, 0, 0.02, 0.0, False),  # surer than the one it repeats
        (0.5, 1, 0.02, 0.0, False),  # of another class
        (0.5, 0, 0.2, 0.0, False),  # elsewhere
        (0.5, 0, 0.02, 0.004, False),  # the sides disagree on what it repeats
    ],
)
def test_a_query_picked_by_one_side_may_repeat_a_detection(score, label, shift, moved, passes):
    """Of an object that more than one query finds, the weakest may be a near-tie of the selection."""
    apart = np.stack([np.arange(50) / 50, np.full(50, 0.5), np.full(50, 0.1), np.full(50, 0.1)], 1).astype(np.float32)
    reference = Rows(apart, rows(0).scores)
    reference.scores[3] = [0.9, 0, 0, 0]
    boxes, scores = apart.copy(), reference.scores.copy()
    boxes[40], scores[40] = apart[3] + [0, shift, 0, 0], np.eye(4, dtype=np.float32)[label] * score
    boxes[3, 1] += moved
    assert bool(compare.exceeded(summary(reference, Rows(boxes, scores)), LIMITS["fp32"])) == (not passes)


def test_confident_detections_need_a_partner():
    apart = np.stack([np.arange(50) / 50, np.full(50, 0.5), np.full(50, 0.02), np.full(50, 0.1)], 1).astype(np.float32)
    reference = Rows(apart, rows(0, confident=10).scores)
    assert compare.lost(reference, reference) == (20, 0)
    order = np.random.default_rng(1).permutation(50)
    assert compare.lost(reference, Rows(reference.boxes_cxcywh[order], reference.scores[order])) == (20, 0)
    faded = reference.scores.copy()
    faded[:4, 0] = 0.2  # below half of 0.9, and confident no more
    assert compare.lost(reference, Rows(reference.boxes_cxcywh, faded)) == (16, 4)
    assert compare.lost(reference, Rows(reference.boxes_cxcywh, reference.scores[:, [1, 0, 2, 3]])) == (20, 20)
    smaller = reference.boxes_cxcywh * np.array([1, 1, 0.6, 0.6], np.float32)  # IoU 0.36
    assert compare.lost(reference, Rows(smaller, reference.scores)) == (20, 20)
    result = compare.summarise(1, [compare.compare_image(reference, reference, (1, 1))], LIMITS["int8"], [(20, 5)])
    assert compare.exceeded(result, LIMITS["int8"]) == [
        "batch 1: 25% of 20 confident detections have no partner on the other side, limit 5%"
    ]


def test_sorted_scores_alone_would_pass_what_is_refused():
    reference = rows(0, confident=5)
    shuffled = reference.boxes_cxcywh[::-1]
    assert compare.exceeded(summary(reference, Rows(shuffled, reference.scores)), LIMITS["fp32"])


def test_the_first_layer_is_named_although_later_ones_diverge_too():
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((1, 20, 8)).astype(np.float32) for _ in range(4)]
    modules = [
        divergence.Module("a", 0, 0b0001, values[0]),
        divergence.Module("b/inner", 1, 0b0011, values[1]),  # folded into b: nowhere in the file
        divergence.Module("b", 2, 0b0111, values[2]),
        divergence.Module("c", 3, 0b1111, values[3]),
    ]
    found = [values[0].transpose(0, 2, 1), values[2]]
    assert divergence.locate(modules, [*found, values[3] + 0.1], [300], 1e-3).startswith("c (2 of 4 layers found")
    assert divergence.locate(modules, [values[0], values[2] + 0.1, values[3] + 0.2], [300], 1e-3).startswith(
        "b/inner (1 of 4"
    )
    shuffled = values[3][:, rng.permutation(20)]
    assert divergence.locate(modules, [*found, shuffled], [300], 1e-3).startswith("c (")
    assert divergence.locate(modules, [*found, shuffled], [300, 20], 1e-3).startswith("every layer agrees")


def test_rows_of_layers_behind_a_pruning_have_their_own_number():
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((1, rows, 8)).astype(np.float32) for rows in (20, 12))
    modules = [divergence.Module("first", 0, 0b01, first), divergence.Module("second", 1, 0b11, second)]
    found = [first[:, rng.permutation(20)], second[:, rng.permutation(12)]]
    assert divergence.locate(modules, found, [20, 12], 1e-3).startswith("every layer agrees")
    assert divergence.locate(modules, found, [20], 1e-3).startswith("second (")


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_boxes_of_a_graph_that_resizes_are_fractions_of_the_picture(resize):
    """What the gate compares with must land where ``Preprocess.view_px`` puts the boxes of the model."""
    inside = Preprocess(48, 64, resize)
    values = {**toy.description(), "preprocess": Preprocess(90, 40).to_dict(), "resizes": inside.to_dict()}
    values["input"] = {**values["input"], "size_hw": [90, 40], "dtype": "uint8", "layout": "NHWC"}
    boxes = np.random.default_rng(0).random((1, 5, 4), np.float32)
    seen = []

    def answer(images):
        seen.append(images.shape)
        return Answer(np.zeros((1, 5, 3)), boxes)

    picture = np.zeros((1, 90, 40, 3), np.uint8)
    found = gate.of_input(answer, from_json(json.dumps(values), "toy"))(picture).boxes_cxcywh
    assert seen == [(1, 48, 64, 3)]
    view_px = np.array([inside.view_px((40, 90))])
    np.testing.assert_allclose(in_view(found, np.array([[0, 0, 40, 90]])), in_view(boxes, view_px), atol=1e-4)
