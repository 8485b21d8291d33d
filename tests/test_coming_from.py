"""Pages for users of other programs: what they name as ours exists."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import pytest

from dfine_jax.cli import COMMANDS, Parser, _command
from dfine_jax.config import DataConfig, LogConfig, OptimConfig, TrainConfig
from dfine_jax.families import every, named

DOCS = Path(__file__).resolve().parent.parent / "docs"
FAMILIES = {"from_rfdetr.md": ["rfdetr"], "from_dfine.md": ["dfine"], "from_ultralytics.md": ["dfine", "rfdetr"]}
SECTIONS = {"optim": [OptimConfig], "data": [DataConfig], "train": [TrainConfig], "log": [LogConfig]}


def ours(page: str) -> list[str]:
    """Pieces of code that are of this program: in tables those behind the first column, in text all."""
    text = re.sub(r"^```.*?^```", "", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line.partition("|")[2].partition(" | ")[2] if line.startswith("|") else line for line in text.splitlines()]
    indented = [line.strip() for line in lines if line.startswith("    ")]
    return indented + re.findall(r"`([^`]+)`", "\n".join(line for line in lines if not line.startswith("    ")))


def options_of(command: str) -> set[str]:
    """All options of a command, and of the commands below it."""
    commands = Parser(prog="dfine").add_subparsers(parser_class=Parser)
    _command(command).add_parser(commands)
    parsers, out = [commands.choices[command]], set()
    for parser in parsers:
        for action in parser._actions:
            out |= set(action.option_strings)
            parsers += action.choices.values() if isinstance(action, argparse._SubParsersAction) else []
    return out


@pytest.mark.parametrize("page", FAMILIES)
def test_keys_exist(page):
    families = [named(name) for name in FAMILIES[page]]
    sections = {**SECTIONS, "model": [each.Model for each in families], "loss": [each.Loss for each in families]}
    found = [
        (section, key)
        for code in ours(page)
        for section, key in re.findall(r"(?<![\w.])(optim|data|train|log|model|loss)\.(\w+)(?![\w(])", code)
        if key not in ("yaml", "pth", "onnx", "xml", "py", "txt")  # files
    ]
    assert len(found) > 10
    for section, key in found:
        fields = {field.name for kind in sections[section] for field in dataclasses.fields(kind)}
        assert key in fields, f"{page} names {section}.{key}, which does not exist"


@pytest.mark.parametrize("page", FAMILIES)
def test_options_exist(page):
    """Behind ``dfine COMMAND`` those of the command, alone those of any."""
    known = {command: options_of(command) for command in COMMANDS}
    anywhere = set().union(*known.values())
    found = 0
    for code in ours(page):
        command = re.match(r"dfine (\w+)", code)
        taken = known[command[1]] if command else anywhere
        for option in re.findall(r"(?<!\S)--?[a-z][\w-]*" if command else r"(?<!\S)--[a-z][\w-]*", code):
            found += 1
            assert option in taken, f"{page} names {option} in `{code}`, which does not exist"
    assert found > 10


def test_recipes_and_weights_exist():
    """Of commands that train, the recipe; whatever is published under a name, the name."""
    recipes = {f"{family.name}-{variant}" for family in every() for variant in family.variants}
    recipes |= set(every()[0].variants)
    published = {name for family in every() for name in family.published}
    for page in FAMILIES:
        for code in ours(page):
            if trained := re.match(r"dfine train (?!\.\.\.)(\S+)", code):
                assert re.search(r"\.(py|json)", trained[1]) or trained[1] in recipes, (page, code)
            for weights in re.findall(r"--weights (\S+)", code):
                assert weights in published or weights.endswith(".pth"), (page, code)
