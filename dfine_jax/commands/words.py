"""What words of other programs are here (foreign_words.py), and known ones that are misspelt, for errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from dfine_jax.commands.foreign_words import (
    ACTIONS,
    COMMANDS,
    KEYS,
    NOT_OFFERED,
    NOT_THERE,
    OFF,
    OFF_WORDS,
    OPTIONS,
    SWITCHES,
    TASKS,
    VALUES,
)
from dfine_jax.config import DataConfig, LogConfig, OptimConfig, TrainConfig

_NEAR = 0.75  # likeness from which a word is taken for a misspelt one; below it are words of other meaning

# What to give where a positional argument is missing.
MISSING = {
    "RECIPE": "n is the smallest",
    "MODEL": "such as runs/cells/best or cells.onnx",
    "SOURCE": "an image, folder, video, address or camera number",
}


def command(name: str, known: Collection[str], following: str = "") -> str:
    """What an unknown command may be, as the end of a sentence.

    Args:
      following: the argument after it, of which it may be the task.
    """
    if name == "help":
        return "; dfine --help, dfine COMMAND --help"
    if name.lower() in known:
        return f"; did you mean {name.lower()}?"
    plain = name.lower().lstrip("-")
    if plain in TASKS and following in ACTIONS and not Path(following).exists():
        here = COMMANDS.get(following, following)
        masks = " (masks: --task segment)" if (plain, here) == ("segment", "train") else ""
        return f"; write dfine {here}, without {name}{masks}"
    if plain in COMMANDS:
        return f"; here it is {COMMANDS[plain]}"
    return near(plain, known)


def option(argument: str, help_text: str, known: Collection[str]) -> str:
    """What an argument that a command lacks is called there, as the end of a sentence; empty: nothing is known.

    Args:
      argument: an option, or an assignment such as ``conf=0.3``.
      help_text: of the command, where its positional arguments stand.
      known: its options.
    """
    word, _, given = argument.partition("=")
    word = word if word.startswith("-") or _is_ours(word) else word.rpartition(".")[2]  # of a section elsewhere
    plain, dashed = word.lstrip("-").lower().replace("_", "-"), word.startswith("-")
    usage = help_text.partition("\n\n")[0]
    takes_keys = re.search(r"(?<![\w.])key=value", usage) is not None
    known = [*known, *re.findall(r"(?<![\w-])[A-Z]+(?![\w-])", usage)]
    if given and (cure := _when_off(plain.replace("-", "_"), given.lower(), takes_keys)):
        return cure
    if takes_keys and not dashed and (cure := key(plain, known, given or "...")):
        return cure
    if f"--{plain}" in known:
        return f"; did you mean --{plain}?"
    for each in OPTIONS.get(plain, ()):
        of, sentence, about = each.partition("!")
        if sentence and (not of or f"dfine {of} " in usage) and _is_of(about, known, takes_keys):
            return f"; {about}"
        if each.startswith("--") and each.split()[0] in known:
            return f"; here it is {each}"
        if each.isupper() and each in known:
            return f"; it is {each}, " + (
                "which stands without an option" if dashed else f"write {given or each} alone"
            )
        if each.endswith("=") and takes_keys:
            return f"; here it is {each}..., without dashes" if dashed else f"; here it is {each}{given}"
        if each == "key=value" and takes_keys:
            return "; write section.key=value, without an option"
    if takes_keys and (cure := key(plain, known)):
        return cure
    for one in (plain.removesuffix("s"), f"{plain}s"):
        if f"--{one}" in known:
            return f"; did you mean --{one}?"
    return ""


def key(word: str, known: Collection[str], given: str = "") -> str:
    """What a configuration key of another program is here, as the end of a sentence; empty: nothing is known.

    Args:
      known: options and arguments of the command.
      given: its value; empty where it was written as an option.
    """
    here = KEYS.get(word.lower().replace("-", "_"), "")
    if here.startswith("!"):
        return f"; {here[1:]}"
    if re.match(r"--|[A-Z]", here) and re.split(r"[ ,]", here)[0] not in known:
        return ""
    if here.startswith("--task") and (sentence := NOT_THERE["--task"].get(given.lower())):
        return f"; {sentence}"
    if here.startswith("--task") and (meant := VALUES["--task"].get(given.lower(), given.lower())) in TASKS:
        return f"; here it is --task {meant}"
    if "." not in here or re.search(r"[ =]", here):
        return f"; here it is {here}" if here else ""
    given = given.lower() if given in ("True", "False") else given
    return f"; here it is {here}={given or '...'}" + ", without dashes" * (not given)


def _is_ours(word: str) -> bool:
    """Whether a word is a key of the configuration with its section, as far as that is the same for all models."""
    section, dot, name = word.partition(".")
    kind = {"optim": OptimConfig, "data": DataConfig, "train": TrainConfig, "log": LogConfig}.get(section)
    return bool(dot) and (section in ("model", "loss") or (kind is not None and name in kind.__dataclass_fields__))


def _when_off(word: str, given: str, takes_keys: bool) -> str:
    """As ``option``, of an assignment that turns something off; empty: it does not."""
    if given not in OFF_WORDS and not (word in SWITCHES and re.fullmatch(r"0(\.0*)?", given)):
        return ""
    if takes_keys and word in OFF:
        return f"; here it is {OFF[word]}"
    return "; leave it out" if word in KEYS or word.replace("_", "-") in OPTIONS else ""


def _is_of(sentence: str, known: Collection[str], takes_keys: bool) -> bool:
    """Whether what a sentence tells to write can be written in the command."""
    own = "; ".join(part for part in sentence.split(";") if "dfine " not in part)
    has_keys = re.search(r"\b(?:model|loss|optim|data|train|log)\.\w", own) is not None
    return set(re.findall(r"--[a-z][\w-]*", own)) <= set(known) and (takes_keys or not has_keys)


def value(name: str, given: str, message: str) -> str:
    """What a value that an option does not take may be, as the end of a sentence; empty: nothing is known.

    Args:
      message: of argparse, with what the option takes; options of one name take other values in other commands.
    """
    meant = VALUES.get(name, {}).get(given.lower())
    if meant and meant in message:
        return f"{name} {given}: here it is {name} {meant}"
    if sentence := NOT_THERE.get(name, {}).get(given.lower()):
        return f"{name} {given}: {sentence}"
    return f"{name} {given} {NOT_OFFERED[name]}" if name in NOT_OFFERED and "openvino" in message else ""


def near(word: str, known: Collection[str]) -> str:
    """Known words that are written alike, or begin so, as the end of a sentence."""
    bare = {each.lstrip("-"): each for each in known}
    plain = word.lstrip("-").lower().replace("_", "-")
    close = [each for each in bare if len(plain) > 2 and each.startswith(plain)]
    close += difflib.get_close_matches(plain, list(bare), n=2, cutoff=_NEAR)
    return f"; did you mean {' or '.join(bare[each] for each in dict.fromkeys(close[:2]))}?" if close else ""


def assignments(arguments: Sequence[object]) -> list[str]:
    """Those of the arguments that are ``word=value``, as other programs take options, and nothing that is there.

    Words may have sections of another program, such as ``train.decision_metrics``.
    """
    texts = [str(argument) for argument in arguments]
    found = [text for text in texts if re.match(r"[A-Za-z][\w-]*(\.[\w-]+)*=", text) and not Path(text).exists()]
    return [text for text in found if not _is_ours(text.partition("=")[0])]


def unknown_options(arguments: Sequence[str], known: Collection[str]) -> list[str]:
    """Those of the arguments that are options and not known."""
    dashed = [argument for argument in arguments if re.match(r"--?[a-zA-Z]", argument)]
    return [argument for argument in dashed if argument.partition("=")[0] not in known]
