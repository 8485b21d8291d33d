"""The command line: help without JAX, errors in one line, exit statuses."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dfine_jax import __version__, cli
from dfine_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:  # argparse ends the process itself for --help and errors
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def subprocess_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dfine_jax.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["", *cli.COMMANDS])
def test_help_explains_with_an_example_and_starts_no_jax(command):
    code = f"import sys\nfrom dfine_jax import cli\ntry: cli.main({[command, '--help'] if command else ['--help']})\n"
    code += "except SystemExit as e: print('status', e.code, 'jax' in sys.modules)"
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert time.perf_counter() - start < 5  # 0.1 s on an idle machine
    assert result.stdout.endswith("status 0 False\n"), result.stderr
    assert f"dfine {command}".strip() in result.stdout
    if command:
        assert "example" in result.stdout


def test_errors_that_xla_only_logs_are_not_shown():
    """As its alarm about slow compiling, after two minutes; a port that is taken is told at the same level at once."""
    code = """if True:
        import logging, os, socket, sys
        from dfine_jax import cli
        if sys.argv[1] == "quiet":
            cli._quiet_libraries()
        import jax
        taken = socket.socket(socket.AF_INET6)
        taken.bind(("::", 0))
        taken.listen()
        jax.profiler.start_server(taken.getsockname()[1])
        assert not logging.getLogger("jax._src.dispatch").isEnabledFor(logging.WARNING) or sys.argv[1] != "quiet"
    """
    if not socket.has_ipv6:
        pytest.skip("no IPv6, on which XLA listens")
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    shown = [
        subprocess.run(
            [sys.executable, "-c", code, how],
            cwd=ROOT, env=environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=True,
        ).stderr
        for how in ("loud", "quiet")
    ]  # fmt: skip
    assert "Unable to bind" in shown[0] and shown[1] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "m.onnx", ""], "an empty name was given; is a variable not set? (see dfine predict --help)"),
        (["predict", "m.onnx", "p.jpg", "--out", ""], "an empty name was given for --out; is a variable not set?"),
        (["predict", "m.onnx", "p.jpg", "--json="], "an empty name was given for --json; is a variable not set?"),
        (["train", "n", "--data", " ", "--out", "r"], "an empty name was given for --data; is a variable not set?"),
    ],
)
def test_empty_names_are_no_folders(capsys, arguments, message):
    status, _, err = run(capsys, *arguments)
    assert status == 2 and message in err


def test_no_arguments_show_the_overview(capsys):
    status, out, _ = run(capsys)
    assert status == 0
    assert all(f"  {name} " in out for name in cli.COMMANDS)


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, f"dfine-jax {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean train? (see dfine --help)"),
        (["zzz"], f"unknown command 'zzz'; one of {', '.join(cli.COMMANDS)} (see dfine --help)"),
        (["--vresion"], "unknown option --vresion; did you mean --version? (see dfine --help)"),
        (
            ["predict", "m", "s", "--treshold", "1"],
            "unknown option --treshold; did you mean --threshold? (see dfine predict --help)",
        ),
        (["predict", "m", "s", "--qqq=1"], "unknown option --qqq=1 (see dfine predict --help)"),
        (
            ["predict", "m"],
            "the following arguments are required: SOURCE (an image, folder, video, address or camera number) "
            "(see dfine predict --help)",
        ),
        (
            ["predict", "m", "s", "--threshold", "high"],
            "argument --threshold: invalid float value: 'high' (see dfine predict --help)",
        ),
        (["doctor", "now"], "unexpected argument 'now' (see dfine doctor --help)"),
        (
            ["predict", "dfine-n-coco", "nothing.jpg"],
            "nothing.jpg does not exist; give an image, a folder, a video, an address (rtsp://...) or a camera (0)",
        ),
    ],
)
def test_errors_are_one_line_with_the_cure(capsys, arguments, message):
    assert run(capsys, *arguments) == (2, "", f"dfine: error: {message}\n")


def test_options_may_stand_before_between_and_after_arguments(monkeypatch):
    from dfine_jax.commands import predict

    seen = []
    monkeypatch.setattr(predict, "run", lambda options: seen.append(options) or 0)
    for arguments in (["--json", "r", "m", "a", "b"], ["m", "a", "--json", "r", "b"], ["m", "a", "b", "--json=r"]):
        assert cli.main(["predict", *arguments]) == 0
    assert [(o.model, o.source, str(o.json)) for o in seen] == [("m", ["a", "b"], "r")] * 3


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("file x is broken; take another"), 2, "dfine: error: file x is broken; take another\n"),
        (KeyboardInterrupt(), 130, "dfine: interrupted\n"),
        (
            PermissionError(13, "Permission denied", "/out"),
            2,
            "dfine: error: /out: Permission denied; correct its permissions, or choose another\n",
        ),
        (
            OSError(28, "No space left on device"),
            2,
            "dfine: error: No space left on device; free some space there, or choose another folder\n",
        ),
    ],
)
def test_failures_of_a_command(capsys, monkeypatch, error, status, message):
    from dfine_jax.commands import doctor

    def fail(options):
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert run(capsys, "doctor") == (status, "", message)


def test_a_bug_keeps_its_traceback(monkeypatch):
    from dfine_jax.commands import doctor

    monkeypatch.setattr(doctor, "run", lambda options: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_doctor_names_what_is_here_and_what_is_not():
    result = subprocess_run("doctor")
    assert result.returncode == 0, result.stderr
    assert "devices (backend" in result.stdout
    assert "orbax-checkpoint" in result.stdout
    assert "MISSING" not in result.stdout


def test_a_pipe_gets_every_line_when_it_is_printed():
    code = (
        "import os, sys; from dfine_jax import cli; sys.argv = ['dfine']; "
        "cli._run = lambda *_: (print('now'), os._exit(7)); cli.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (7, "now\n")


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m dfine_jax.cli --help | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("0\n", "")
