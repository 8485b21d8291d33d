"""The ``dfine`` command. Each subcommand is a module of ``dfine_jax.commands``, imported when it is called."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import platform
import re
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from dfine_jax import __version__
from dfine_jax.commands import words
from dfine_jax.errors import UserError
from dfine_jax.system.files import is_of_the_users_world, told
from dfine_jax.system.host_memory import start_with_allocator
from dfine_jax.system.installed import absent

COMMANDS = {
    "demo": "whole tour on a synthetic dataset in minutes: data, training, evaluation, pictures, report",
    "train": "train a detector on a dataset",
    "evaluate": "COCO average precision of a model on a dataset",
    "errors": "annotations that a model finds missing or wrong: a page, a table, a COCO file",
    "predict": "detect objects in images, folders, videos and streams; pictures, videos, COCO results, crops",
    "convert": "official or Hugging Face weights to a checkpoint, and back",
    "export": "weights to ONNX, OpenVINO or TensorRT, checked against the model",
    "check": "find what is wrong with a dataset; --overfit proves that it can be learnt",
    "data": "divide a dataset into splits, or convert it to another format",
    "benchmark": "latency, throughput, memory and accuracy of models in one interleaved run",
    "serve": "HTTP: JSON, drawn pictures, a page to drop a picture on",
    "doctor": "versions, devices, optional parts: what is here and what is missing",
}
_TALKATIVE = ("absl", "orbax", "flax", "matplotlib", "PIL", "onnx", "nncf", "openvino")  # in warnings
_TALKATIVE += ("jax._src", "jax.experimental")  # the level of "jax" itself would become that of XLA, above the variable
_COMPUTING = ("demo", "train", "evaluate", "errors", "check")  # commands that take many steps
_WHOLE = {"train": "train", "demo": "train", "convert": "train", "export": "export"}  # extras that commands need
_EXIT_USER_ERROR = 2
_EXIT_INTERRUPT = 130


class _Formatter(argparse.HelpFormatter):
    """Wraps paragraphs and leaves indented lines, the examples, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = (line if line.startswith(" ") else textwrap.fill(line, width) for line in text.splitlines())
        return textwrap.indent("\n".join(lines), indent)


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one line with the cure."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(*args, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As its parent, keeping what was given for the messages."""
        self._given = list(args if args is not None else [])
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(_EXIT_USER_ERROR, f"dfine: error: {' '.join(self._told(message).split())} (see {self.prog} --help)\n")

    def check_words(self, options: argparse.Namespace) -> None:
        """End with the cure where a positional argument is an option of another program, such as ``conf=0.3``."""
        for action in self._get_positional_actions():
            if action.dest == "out":  # a file that is written may have any name
                continue
            values = getattr(options, action.dest, None)
            for argument in words.assignments(values if isinstance(values, list) else [values]):
                if cure := words.option(argument, self.format_usage(), list(self._option_string_actions)):
                    key = argument.partition("=")[0]
                    is_key = "=" in str(action.metavar)
                    self.error(f"unknown configuration key {key!r}{cure}" if is_key else self._unexpected(argument))

    def _unexpected(self, argument: str) -> str:
        cure = words.option(argument, self.format_usage(), list(self._option_string_actions))
        return f"unexpected argument {argument!r}{cure if '=' in argument else ''}"

    def _told(self, message: str) -> str:
        """A message of argparse with the cure."""
        known = list(self._option_string_actions)
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown and not unknown[1].startswith("-"):
            return self._unexpected(unknown[1])
        if unknown:
            cure = words.option(unknown[1], self.format_usage(), known)
            return f"unknown option {unknown[1]}{cure or words.near(unknown[1].partition('=')[0], known)}"
        if absent := re.match(r"the following arguments are required: (.*)", message):
            given = getattr(self, "_given", [])
            for argument in words.unknown_options(given, known):
                if cure := words.option(argument, self.format_usage(), known):
                    return f"unknown option {argument}{cure}"
            free = [one for before, one in zip(["", *given], given, strict=False) if not before.startswith("-")]
            for argument in words.assignments(free):
                if words.option(argument, self.format_usage(), known):
                    return self._unexpected(argument)
            asked = [name for name in absent[1].split(", ") if "=" not in name]
            hint = words.MISSING.get(asked[0], "") if len(asked) == 1 else ""
            return f"the following arguments are required: {', '.join(asked)}{f' ({hint})' if hint else ''}"
        if choice := re.match(r"argument (--[\w-]+): invalid choice: '(.*?)'", message):
            return words.value(choice[1], choice[2], message) or message
        return message


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 2 for an error of the user, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    alone = argv is None  # the program itself, not a call of one that may have changed this package
    if alone and arguments[:1] and arguments[0] in _COMPUTING:
        start_with_allocator()
    if alone and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # whoever reads a file or a pipe sees each line when it is printed
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _quiet_libraries()
    logging.getLogger("dfine_jax").setLevel(logging.INFO)
    try:
        return _flushed(arguments, alone)
    except UserError as error:
        print(f"dfine: error: {error}", file=sys.stderr)
        return _EXIT_USER_ERROR
    except ModuleNotFoundError as error:  # of an extra that is not installed
        cause = absent(error, f"dfine {arguments[0]}", _WHOLE.get(arguments[0], ""))
        if cause is None:
            raise
        print(f"dfine: error: {cause}", file=sys.stderr)
        return _EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("dfine: interrupted", file=sys.stderr)
        return _EXIT_INTERRUPT
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        _give_up_output()
        return 0
    except OSError as error:  # a full disk, a read-only folder, a name that is too long
        if not is_of_the_users_world(error):
            raise
        print(f"dfine: error: {told(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # it is the output that is full
            _give_up_output()
        return _EXIT_USER_ERROR


def _quiet_libraries() -> None:
    """Warnings of libraries are for programmers; what a user should know is said by this package."""
    if not sys.warnoptions:  # asked for by python -W or PYTHONWARNINGS
        warnings.simplefilter("ignore")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Of XLA, fatal errors only: its alarm about slow compiling is called an error and is none, errors are raised.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _flushed(arguments: list[str], alone: bool) -> int:
    """The command with all that it prints, so that what is wrong with the output is told like any other error."""
    try:
        status = _run(arguments, alone)
    except SystemExit:  # of help, and of mistakes in options
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _give_up_output() -> None:
    """Nothing more is printed, not even what is waiting: at its end the interpreter would fail on that again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str], alone: bool) -> int:
    overview = _overview()
    if not arguments:
        overview.print_help()
        return 0
    name = arguments[0]
    if name.startswith("-"):
        overview.parse_args(arguments)
        overview.error(f"name a command: {', '.join(COMMANDS)}")
    if name not in COMMANDS:
        cure = words.command(name, COMMANDS, "".join(arguments[1:2]))
        overview.error(f"unknown command {name!r}{cure or '; one of ' + ', '.join(COMMANDS)}")
    command = _command(name)
    commands = Parser(prog="dfine").add_subparsers(parser_class=Parser)
    command.add_parser(commands)
    chosen = commands.choices[name]
    if (empty := _empty(arguments[1:])) is not None:
        chosen.error(f"an empty name was given{empty and f' for {empty}'}; is a variable not set?")
    # Options may stand between positional arguments, which argparse cannot do for commands of two words.
    options = (chosen.parse_args if chosen._subparsers else chosen.parse_intermixed_args)(arguments[1:])
    chosen.check_words(options)
    folder = _keep_compiled_programs()
    options.kept_programs = folder if alone else None
    options.typed = arguments
    return command.run(options)


def _empty(arguments: Sequence[str]) -> str | None:
    """The option before an argument that is empty, or with an empty value; "": it has none; None: there is no such.

    As a path an empty text would be the whole current folder.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument.strip():
            return before if before.startswith("-") else ""
        if argument.startswith("--") and argument.endswith("="):
            return argument[:-1]
    return None


def _keep_compiled_programs() -> Path | None:
    """Let JAX store compiled programs for a quick next start, where; an empty JAX_COMPILATION_CACHE_DIR forbids it."""
    from dfine_jax.system.cache import cache_dir

    # By host name, because homes are shared between machines whose processors differ.
    folder = cache_dir() / f"compiled-{platform.node()}"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with contextlib.suppress(OSError):  # read-only or full: programs are compiled anew each time
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(kept) / "steps" if kept else None


def _overview() -> Parser:
    lines = "\n".join(f"  {name:10s}{summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="dfine",
        usage="dfine COMMAND ...",
        description="Real-time object detection in JAX.",
        epilog=f"commands:\n{lines}\n\nstart here: dfine demo --out demo\nhelp of a command: dfine COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"dfine-jax {__version__}")
    return parser


def _command(name: str) -> ModuleType:
    match name:
        case "demo":
            from dfine_jax.commands import demo as command
        case "train":
            from dfine_jax.commands import train as command
        case "evaluate":
            from dfine_jax.commands import evaluate as command
        case "errors":
            from dfine_jax.commands import errors as command
        case "predict":
            from dfine_jax.commands import predict as command
        case "convert":
            from dfine_jax.commands import convert as command
        case "export":
            from dfine_jax.commands import export as command
        case "check":
            from dfine_jax.commands import check as command
        case "data":
            from dfine_jax.commands import data as command
        case "benchmark":
            from dfine_jax.commands import benchmark as command
        case "serve":
            from dfine_jax.commands import serve as command
        case "doctor":
            from dfine_jax.commands import doctor as command
        case _:
            raise ValueError(name)
    return command


if __name__ == "__main__":
    sys.exit(main())
