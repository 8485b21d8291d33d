"""A run without ``--out`` gets a folder of its own, and says which."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from dfine_jax.cli import main
from dfine_jax.commands.train_options import name_folder
from dfine_jax.data.read.synthetic import make_shapes_dataset
from dfine_jax.errors import UserError


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def named(recipe):
    options = argparse.Namespace(recipe=recipe, out=None, resume=False, processes=None)
    assert len(name_folder(options)) == 1
    return str(options.out)


def test_the_first_line_says_where_the_run_is(capsys):
    data = make_shapes_dataset(Path("shapes"), num_train=2, num_val=1, size_px=64, seed=0)
    command = ["train", "n", "--data", str(data), "--dry-run"]
    for taken, expected in ((None, "runs/n"), ("runs/n", "runs/n-2")):
        if taken:
            Path(taken).mkdir(parents=True)
        assert main(command) == 0
        assert capsys.readouterr().out.splitlines()[0] == f"folder of the run: {expected} (--out DIR for another one)"
        assert not Path(expected).exists()  # it was no run
    assert main([*command, "--out", "cells"]) == 0
    assert "folder of the run" not in capsys.readouterr().out


def test_no_folder_is_used_twice():
    for expected in ("runs/rfdetr-nano", "runs/rfdetr-nano-2", "runs/rfdetr-nano-3"):
        assert named("rfdetr-nano") == expected
        Path(expected).mkdir(parents=True)
    Path("runs/s").write_text("a file of that name")
    assert named("s") == "runs/s-2"


def test_files_give_their_names():
    assert named("experiments/deim_coco.py:m") == "runs/deim_coco-m"
    assert named("experiments/deim_coco.py") == "runs/deim_coco"
    assert named("plans/cells.json") == "runs/cells"


def test_the_run_to_continue_is_the_last_one_that_can_be(capsys):
    for name in ("n/last", "n-2/last", "n-10/last", "n-11", "n-new/last", "rfdetr-n-12/last"):
        (Path("runs") / name).mkdir(parents=True)
    assert main(["train", "n", "--data", "shapes", "--resume"]) == 2
    assert "such as --out runs/n-10\n" in capsys.readouterr().err


def test_the_command_that_is_kept_says_which_run_it_is_of(monkeypatch):
    data = make_shapes_dataset(Path("shapes"), num_train=2, num_val=1, size_px=64, seed=0)
    kept = []

    def begun(*_, origin, **__):
        kept.append(origin.command)
        raise UserError("so far")

    monkeypatch.setattr("dfine_jax.training.run.loop.train", begun)
    Path("runs/n").mkdir(parents=True)
    command = ["train", "n", "--data", str(data), "data.workers=0"]
    for out in ([], ["--out", "cells"]):
        assert main([*command, *out]) == 2
    assert kept == [f"dfine {' '.join(command)} --out {folder}" for folder in ("runs/n-2", "cells")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "--resume: give the folder of the run to continue, such as --out runs/n"),
        (["--coordinator", "a:1", "--processes", "2", "--process", "0"], "give the same --out on each"),
    ],
    ids=["resume", "hosts"],
)
def test_folders_that_must_be_given(capsys, options, message):
    assert main(["train", "n", "--data", "shapes", *options]) == 2
    assert message in capsys.readouterr().err
