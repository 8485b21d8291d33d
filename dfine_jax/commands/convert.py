"""``dfine convert``: weights of other programs to a checkpoint folder, and any weights back to the official layout."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.errors import UserError

if TYPE_CHECKING:
    from dfine_jax.training.checkpoint import Metadata

_OFFICIAL_SUFFIXES = (".pth", ".safetensors")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``convert`` to the command line."""
    parser = subparsers.add_parser(
        "convert",
        help="official or Hugging Face weights to a checkpoint, and back",
        description="Official D-FINE weights (.pth), Hugging Face folders, .safetensors and published names to a "
        "checkpoint folder; or, when OUT ends in .pth or .safetensors, any weights to the official layout. Variant and "
        "classes are recognised; a file that does not fit in every entry is refused.",
        epilog="examples:\n"
        "  dfine convert dfine_s_coco.pth weights/s\n"
        "  dfine convert dfine-s-coco weights/s\n"
        "  dfine convert runs/cells/best cells.pth",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="weights file, Hugging Face folder, checkpoint folder or published name",
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="checkpoint folder to write, or a .pth or .safetensors file"
    )
    parser.add_argument(
        "--activation", choices=("relu", "silu"),
        help="of decoder and heads, which other programs do not store: relu for D-FINE, silu for DEIM (default: silu "
        "for a file named deim... or an L or X with trained batch norms in the backbone, else relu)",
    )  # fmt: skip
    parser.add_argument(
        "--class-names", metavar="FILE", type=Path,
        help="text file with one class name per line, in the order of the classes",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace OUT when it exists")


def run(options: argparse.Namespace) -> int:
    """Convert and say what was found."""
    _check_place(options.out, options.force)
    names = _read_names(options.class_names) if options.class_names else None
    variables, metadata = _read(options.checkpoint, options.activation, names)
    model = metadata.config.model
    size = sum(leaf.size for leaf in _leaves(variables["params"]))
    if options.out.suffix in _OFFICIAL_SUFFIXES:
        _write_official(options.out, variables, metadata)
    else:
        from dfine_jax.training.checkpoint import save_weights

        save_weights(options.out, variables, metadata)
    print(
        f"{options.out}: D-FINE-{model.variant.upper()}, {model.num_classes} classes "
        f"({', '.join(metadata.class_names[:3])}{', ...' if model.num_classes > 3 else ''}), {size:,} parameters, "
        f"{model.decoder_activation.replace('relu', 'ReLU').replace('silu', 'SiLU')}"
    )
    return 0


def _check_place(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UserError(f"{out} exists; choose another place or add --force")
    if out.is_dir() and (out.suffix in _OFFICIAL_SUFFIXES or not (out / "metadata.json").is_file()):
        raise UserError(f"{out} is a folder but not a checkpoint, so it is not replaced; choose another place")


def _read(source: str, activation: Any, names: list[str] | None) -> tuple[dict[str, Any], Metadata]:
    from converters.importer import import_weights
    from dfine_jax import hub
    from dfine_jax.training.checkpoint import load_weights

    path, licence = Path(source), ""
    if not path.exists() and hub.is_published(source):
        activation = activation or ("relu" if source in hub.OFFICIAL else None)
        path, licence = hub.fetch(source), hub.LICENCE
    if path.is_dir() and not (path / "config.json").is_file():
        if names is not None or activation is not None:
            raise UserError(f"{path} is a checkpoint that knows its classes and activation; leave the options out")
        return load_weights(path)
    if not path.exists():
        close = difflib.get_close_matches(source, hub.OFFICIAL, n=2)
        names_like = f"did you mean {' or '.join(close)}?" if close else f"names: {', '.join(hub.OFFICIAL)}"
        raise UserError(f"{source}: no such file, folder or published name; {names_like}")
    return import_weights(path, activation=activation, class_names=names, licence=licence)


def _write_official(out: Path, variables: dict[str, Any], metadata: Metadata) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from converters import torch_pickle
    from converters.torch_weights import export_state_dict

    height_px, width_px = metadata.input_size_px
    tensors = export_state_dict(metadata.config.model, variables, height_px=height_px, width_px=width_px)
    if out.suffix == ".pth":
        torch_pickle.save(out, {"model": tensors})
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another place") from error


def _read_names(file: Path) -> list[str]:
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text ({error}); give one class name per line") from error
    return [name for name in names if name]


def _leaves(tree: Any) -> list[Any]:
    return [leaf for node in tree.values() for leaf in _leaves(node)] if isinstance(tree, dict) else [tree]
