"""How an exported file gets its name: it is made in a folder of its own, and moved only when it has passed.

Whatever goes wrong and whenever the process ends, a report that says PASSED lies only beside the file it speaks of.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dfine_jax.converters.gate.report import GateReport, report_files, write, write_refusal
from dfine_jax.errors import UserError
from dfine_jax.serving.artefact import sidecar


class RefusedError(UserError):
    """The file did not pass; its report is written, its name is free."""


@contextlib.contextmanager
def staging(final: Path | str, discard: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A path of the same name in a folder of its own beside ``final``; the folder is gone afterwards.

    After a UserError inside, nothing is left at the final name, whatever was there before, and the report says why.

    Args:
      discard: removes what was there before; None: that of an exported file.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield folder / final.name
    except RefusedError:
        raise
    except UserError as error:
        (discard or _discard)(final)
        write_refusal(final, str(error))
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def release(staged: Path, final: Path, report: GateReport) -> None:
    """Move a file that did not fail, with all that was written beside it, to its name; then write the report.

    The file itself comes after what belongs to it, the report last: a process that is killed in between leaves no
    report, and of several files no old one beside a new one that would be read together.

    Raises:
      RefusedError: it failed. Nothing is left at the final name, whatever was there before.
    """
    companions = sorted(file for file in staged.parent.iterdir() if file != staged)
    names = [final.with_name(file.name) for file in companions]
    if report.failures:
        _discard(final, names)
        write(report, final)
        raise RefusedError(f"{final} was refused: {report.summary()} (see {final.name}.report.txt)")
    for old in report_files(final):
        old.unlink(missing_ok=True)
    if companions:
        final.unlink(missing_ok=True)
    for file, name in zip(companions, names, strict=True):
        file.replace(name)
    staged.replace(final)
    write(report, final)


def _discard(final: Path, companions: Iterable[Path] = ()) -> None:
    """Remove a file, its reports first, and what belongs to it last."""
    known = {".xml": [final.with_suffix(".bin")], ".engine": [sidecar(final)]}.get(final.suffix, [])
    for file in (*report_files(final), final, *known, *companions):
        file.unlink(missing_ok=True)
