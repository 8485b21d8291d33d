"""The page of a run, made from the files of its folder."""

from __future__ import annotations

import errno
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image
from tiny import tiny_config

from dfine_jax.data.read.dataset import Classes
from dfine_jax.errors import UserError
from dfine_jax.evaluation.plots import save_evaluation
from dfine_jax.evaluation.score import score
from dfine_jax.training.report import run_page
from dfine_jax.training.report.log import RunLog
from dfine_jax.training.report.run_curves import best_row
from dfine_jax.training.report.run_files import COMMAND, PLAN, STEPS, plan_text, read_steps
from dfine_jax.training.report.run_page import Origin, RunPage
from dfine_jax.training.report.underway import Underway

TRUTH = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 99, "height": 99}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50]}],
}


def written(folder, origin=None, **changes):
    config = tiny_config(**changes)
    RunPage(folder, config, [("classes", "1: <cat>")], origin or Origin(data="my cells")).write()
    return (folder / "report.html").read_text()


@pytest.fixture
def run(tmp_path):
    """A folder as a run leaves it after three epochs."""
    rows = ["epoch,step,lr,backbone_lr,loss,loss_vfl,images_per_s,data_wait,ap,ap50,f1", "1,3,0.1,0.1,30,3,9.5,0,,,"]
    rows += ["2,6,0.1,0.1,20,2,9.6,0.25,0.3,0.5,0.4", "3,9,0.1,0.1,19,2,9.7,0.5,0.2,0.4,0.3"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    said = ["the plan", "memory of a train step: 1.00 GiB", "epoch  loss", "    1  30"]
    (tmp_path / "log.txt").write_text("".join(f"2026-01-01 10:00:0{i}  {line}\n" for i, line in enumerate(said)))
    found = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 48], "score": 0.8}]
    save_evaluation(score(TRUTH, found, [1], Classes(("cat",), (1,))), tmp_path / "best_evaluation")
    for what in ("annotated", "detected"):
        (tmp_path / "examples").mkdir(exist_ok=True)
        Image.new("RGB", (20, 10)).save(tmp_path / "examples" / f"a b_{what}.jpg")
    for name in ("best", "last"):
        (tmp_path / name).mkdir()
    (tmp_path / PLAN).write_text(plan_text(tiny_config()))
    return tmp_path


def test_a_run_that_begins_has_words_for_what_is_to_come(tmp_path):
    page = written(tmp_path)
    assert "Epoch 1 of 2 is being trained" in page and "Nothing has been evaluated yet." in page
    for words in ("They begin with the first steps.", "No evaluation yet", "They come with evaluations."):
        assert words in page or "log.pictures=0" in page
    assert "&lt;cat&gt;" in page and "<svg" not in page


def test_everything_is_there_and_every_link_leads_somewhere(run):
    page = written(run, train={"epochs": 5})
    assert "Epoch 4 of 5 is being trained" in page and "The best so far is epoch 2 with AP 0.300." in page
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert headings == [
        "Plan", "Curves", "Result", "Thresholds", "Classes", "Precision by recall", "Confusions", "Examples", "Speed",
        "Go on",
    ]  # fmt: skip
    links = {unquote(link) for link in re.findall(r'(?:src|href)="([^"#]+)"', page)}
    assert {"examples/a b_annotated.jpg", "examples/a b_detected.jpg", "metrics.csv", PLAN, "best"} <= links
    assert all((run / link).exists() for link in links)
    assert page.count("best, epoch 2") == 1 and page.count('class="mark"') > 4
    assert "<script" not in page and "http" not in page
    assert "the plan\nmemory of a train step" in page and "50% of the time" in page
    legend = re.search(r"Learning rate</figcaption>(.*?)<svg", page, re.DOTALL)
    assert legend is not None and "legend" not in legend[1]  # of two equal rates one line


def test_commands_repeat_the_run_and_go_on(run):
    page = written(run)
    assert f"dfine train {run}/{PLAN} --data &#x27;my cells&#x27; --out {run}-again" in page
    (run / COMMAND).write_text("dfine train n --data x\n")
    page = written(run, Origin(resume="dfine train n --resume", data="x"))
    assert "<code>dfine train n --data x</code>" in page and "<code>dfine train n --resume</code>" in page
    assert f"dfine evaluate {run}/best --data x --out {run}/evaluation" in page


def test_the_plan_is_one_that_train_takes(run):
    from dfine_jax.commands.train_plan import read_plan

    assert read_plan(str(run / PLAN)) == tiny_config()
    assert json.loads((run / PLAN).read_text())["format"]


def test_the_first_of_equal_epochs_is_the_best():
    rows = [{"epoch": 1.0, "ap": 0.2}, {"epoch": 2.0, "ap": 0.3}, {"epoch": 3.0, "ap": 0.3}, {"epoch": 4.0}]
    assert best_row(rows, tiny_config()) == rows[1] and best_row(rows[3:], tiny_config()) is None
    masks = [{"epoch": 1.0, "ap": 0.9, "mask_ap": 0.1}, {"epoch": 2.0, "ap": 0.1, "mask_ap": 0.2}]
    assert best_row(masks, tiny_config()) == masks[1]
    assert best_row(masks, tiny_config(train={"best_by": "boxes"})) == masks[0]


def clock(monkeypatch):
    """Seconds that pass when they are added to."""
    now = [1000.0]
    monkeypatch.setattr(run_page.time, "monotonic", lambda: now[0])
    return now


def test_the_page_grows_within_an_epoch_but_not_with_every_step(tmp_path, monkeypatch):
    now = clock(monkeypatch)
    log = RunLog(tmp_path, 0, every=2, page=RunPage(tmp_path, tiny_config(), [], Origin()))
    log.show()
    page = tmp_path / "report.html"
    for step in range(1, 9):
        log.step(step, {"loss": 30.0 - step})
        now[0] += 10  # seconds
        log.underway(Underway(step, 4000, 30.0 - step, 12.5, 7200.0))
        if step == 5:
            assert "step 5" not in page.read_text() and not (tmp_path / STEPS).exists()
    text = page.read_text()
    assert ": step 6 of 4000, loss 24.00, 12.5 images/s, about 2.0 hours left at the pace so far." in text
    assert "Epoch 1 of 2 is being trained" in text and "Loss by step" in text
    assert read_steps(tmp_path) == [(2, 28.5), (4, 26.5), (6, 24.5)]  # what comes after is held back
    assert re.search(r'<polyline points="[^"]+" class="l0 faint"/><polyline points="[^"]+" class="l0"/>', text)


def test_news_that_cannot_be_written_do_not_end_the_run(tmp_path, monkeypatch):
    now = clock(monkeypatch)
    log = RunLog(tmp_path, 0, every=1, page=RunPage(tmp_path, tiny_config(), [], Origin()))
    (tmp_path / "report.html").mkdir()
    now[0] += 61
    log.step(1, {"loss": 2.0})
    log.underway(Underway(1, 60, 2.0, None, None))
    with pytest.raises(UserError, match=r"report\.html"):
        log.show()


def test_a_speed_that_is_not_known_yet_is_left_out():
    assert Underway(1, 60, 31.234, None, None).text() == "step 1 of 60, loss 31.23."


def test_steps_that_are_done_again_are_dropped(tmp_path):
    for done, steps in ((0, range(1, 7)), (4, range(5, 9))):
        log = RunLog(tmp_path, 0, every=2, step=done)
        for step in steps:
            log.step(step, {"loss": step + 10.0 * done})
        log.show()
    assert read_steps(tmp_path) == [(2, 1.5), (4, 3.5), (6, 45.5), (8, 47.5)]


def test_a_line_after_a_resume_between_lines_is_of_the_steps_since(tmp_path):
    for done, steps in ((0, range(1, 4)), (3, range(4, 7))):
        log = RunLog(tmp_path, 0, every=2, step=done)
        for step in steps:
            log.step(step, {"loss": float(step)})
        log.show()
    assert read_steps(tmp_path) == [(2, 1.5), (4, 4.0), (6, 5.5)]


def test_a_disk_that_is_full_for_a_while_leaves_whole_lines(tmp_path, monkeypatch):
    log = RunLog(tmp_path, 0, every=1)
    log.step(1, {"loss": 3.25})
    log.show()

    class Full(io.TextIOWrapper):
        def write(self, text):
            super().write(text[: len(text) // 2])
            self.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    log.step(2, {"loss": 2.125})
    monkeypatch.setattr(Path, "open", lambda file, mode: Full(io.FileIO(file, mode)))
    with pytest.raises(UserError, match=r"steps\.csv: No space left"):
        log.show()
    monkeypatch.undo()
    assert (tmp_path / STEPS).read_text() == "step,loss\n1,3.25\n"
    log.step(3, {"loss": 1.0})
    log.show()
    assert (tmp_path / STEPS).read_text() == "step,loss\n1,3.25\n2,2.125\n3,1\n"


@pytest.mark.parametrize(
    "damaged",
    [
        "step,loss\n1,3\n2,2\n3,1.5",  # a line whose loss goes on
        "step,loss\n1,3\n2,2\n3",
        "step,loss\n1,3\n2,2\n3,2.13,2.1\n",  # two lines as one
        "step,loss\n1,3\n13,9\n2,2\n",  # a step that there was not
        "step,loss\n1,3\n2,2\n\0\0\0",
    ],
)
def test_a_damaged_line_of_steps_is_none_and_a_resumed_run_has_whole_ones(tmp_path, damaged):
    (tmp_path / STEPS).write_text(damaged)
    assert read_steps(tmp_path) == [(1, 3.0), (2, 2.0)]
    log = RunLog(tmp_path, 0, every=1, step=2)
    log.step(3, {"loss": 1.5})
    log.show()
    assert (tmp_path / STEPS).read_text() == "step,loss\n1,3\n2,2\n3,1.5\n"


@pytest.mark.parametrize("error", [ValueError("no number"), OSError(errno.ESTALE, "Stale file handle")])
def test_files_that_cannot_be_read_end_no_run_and_hide_no_error(tmp_path, monkeypatch, error):
    def refused(folder):
        raise error

    now = clock(monkeypatch)
    log = RunLog(tmp_path, 0, every=1, page=RunPage(tmp_path, tiny_config(), [], Origin()))
    log.show()
    (tmp_path / "metrics.csv").touch()
    monkeypatch.setattr(run_page, "read_metrics", refused)
    now[0] += 61
    log.underway(Underway(1, 60, 2.0, None, None))
    page = RunPage(tmp_path, tiny_config(), [], Origin())
    (tmp_path / "metrics.csv").unlink()
    with pytest.raises(KeyError, match="the first"), page.telling_errors():
        page.write()
        (tmp_path / "metrics.csv").touch()
        raise KeyError("the first")


def ended_by(folder, error, **origin):
    page = RunPage(folder, tiny_config(), [], Origin(**origin))
    with pytest.raises(type(error)), page.telling_errors():
        page.write()
        page.note(Underway(40, 60, 3.0, 9.0, 60.0))
        raise error
    return (folder / "report.html").read_text()


def test_an_error_is_told_with_how_to_go_on(run):
    page = ended_by(run, RuntimeError("a < b " * 500), resume="dfine train n --out x --resume")
    assert "The run ended with an error." in page and "is being trained" not in page
    assert "RuntimeError: a &lt; b a" in page and "It had come to step 40 of 60 (20" in page and len(page) < 60_000
    assert "<code>dfine train n --out x --resume</code>" in page.split("Plan</h2>")[0]
    page = ended_by(run, UserError("the disk is full"))
    assert ">the disk is full It had come" in page and "with --resume (from Python: resume=True)" in page


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path):
    page = ended_by(tmp_path, KeyboardInterrupt())
    assert "KeyboardInterrupt" in page and "before its first checkpoint" in page and "--resume" not in page


def test_an_error_after_the_end_or_before_the_first_page_leaves_the_page(tmp_path):
    page = RunPage(tmp_path, tiny_config(), [], Origin())
    with pytest.raises(ValueError), page.telling_errors():
        raise ValueError
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(ValueError), page.telling_errors():
        page.write()
        page.write("The run is finished.")
        raise ValueError
    assert "The run is finished." in (tmp_path / "report.html").read_text()


def test_a_page_that_cannot_be_written_does_not_hide_the_error(tmp_path):
    page = RunPage(tmp_path, tiny_config(), [], Origin())
    with pytest.raises(ValueError), page.telling_errors():
        page.write()
        (tmp_path / "report.html").unlink()
        (tmp_path / "report.html").mkdir()
        raise ValueError
