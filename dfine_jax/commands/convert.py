"""``dfine convert``: weights of other programs to a checkpoint folder, and any weights back to the official layout."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfine_jax.commands.early import require_model
from dfine_jax.errors import UserError
from dfine_jax.families import ACTIVATION_HELP
from dfine_jax.system.files import read_text
from dfine_jax.weights.names import EXPORTED, OTHERS

if TYPE_CHECKING:
    from dfine_jax.training.run.checkpoint import Metadata

_OFFICIAL_SUFFIXES = (".pth", ".pt", ".safetensors")
_EXPORTS = dict(zip(EXPORTED, ("onnx", "openvino", "tensorrt"), strict=True))  # ``--to`` of dfine export
_NO_FOLDERS = (*OTHERS, ".ckpt", ".h5", ".keras", ".npz", ".pkl", ".zip")  # endings that nobody gives a folder


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add ``convert`` to the command line."""
    parser = subparsers.add_parser(
        "convert",
        help="official or Hugging Face weights to a checkpoint, and back",
        description="Official weights (.pth), Hugging Face folders, .safetensors and published names to a "
        "checkpoint folder; or, when OUT ends in .pth, .pt or .safetensors, any weights to the official layout, with "
        "--huggingface to a folder for transformers. Family, variant and classes are recognised; a file that does not "
        "fit in every entry is refused.",
        epilog="examples:\n"
        "  dfine convert dfine_s_coco.pth weights/s\n"
        "  dfine convert dfine-s-coco weights/s\n"
        "  dfine convert runs/cells/best cells.pth\n"
        "  dfine convert rtdetrv2-r18-coco r18 --huggingface",
    )
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="weights file, Hugging Face folder, checkpoint folder or published name",
    )
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="checkpoint folder to write, or a .pth, .pt or .safetensors file"
    )
    parser.add_argument(
        "overrides", metavar="model.key=value", nargs="*",
        help="of the architecture, where neither the file nor its name says it, such as model.sampling=discrete",
    )  # fmt: skip
    parser.add_argument(
        "--activation", choices=("relu", "silu"),
        help=f"of decoder and heads, where the file does not say it: {ACTIVATION_HELP} (default: by the name of the "
        "file or by its tensors, with a warning; else it must be given)",
    )  # fmt: skip
    parser.add_argument(
        "--huggingface",
        action="store_true",
        help="OUT is a folder with config.json and model.safetensors, of families whose architecture can be written so",
    )
    parser.add_argument(
        "--class-names", metavar="FILE", type=Path,
        help="text file with one class name per line, in the order of the classes",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace OUT when it exists")


def run(options: argparse.Namespace) -> int:
    """Convert and say what was found."""
    _check_ending(options.out, options.checkpoint)
    _check_place(options.out, options.force, "config.json" if options.huggingface else "metadata.json")
    require_model(options.checkpoint, exported=False)
    names = _read_names(options.class_names) if options.class_names else None
    from dfine_jax import families
    from dfine_jax.weights.load import read

    variables, metadata = read(options.checkpoint, activation=options.activation, class_names=names)
    metadata = _as_said(metadata, options.overrides)
    model = metadata.config.model
    size = sum(leaf.size for leaf in _leaves(variables["params"]))
    if options.huggingface or options.out.suffix in _OFFICIAL_SUFFIXES:
        from dfine_jax.converters.torch.exporter import export_weights

        export_weights(options.out, "huggingface" if options.huggingface else "official", variables, metadata)
    else:
        from dfine_jax.training.run.checkpoint import save_weights

        save_weights(options.out, variables, metadata)
    print(
        f"{options.out}: {families.title(model)}, {model.num_classes} classes "
        f"({', '.join(metadata.class_names[:3])}{', ...' if model.num_classes > 3 else ''}), {size:,} parameters, "
        f"{model.decoder_activation.replace('relu', 'ReLU').replace('silu', 'SiLU')}"
        + (f", from {metadata.source_entry}" if metadata.source_entry else "")
    )
    return 0


def _as_said(metadata: Metadata, overrides: list[str]) -> Metadata:
    """The description with fields of the architecture that leave no trace in the weights."""
    if not overrides:
        return metadata
    from dfine_jax import families
    from dfine_jax.families.state_dict import leaf_shapes
    from dfine_jax.system.config_values import override

    for text in overrides:
        if not text.startswith("model."):
            raise UserError(f"{text}: only fields of the model can be given, such as model.sampling=discrete")
    config = override(metadata.config, overrides)
    families.validate(config)
    if leaf_shapes(config.model) != leaf_shapes(metadata.config.model):
        raise UserError(f"{', '.join(overrides)}: the weights are not of this shape; leave it out")
    return dataclasses.replace(metadata, config=config)


def _check_ending(out: Path, checkpoint: str) -> None:
    """UserError for a file that is not written here, which would become a folder of that name."""
    suffix = out.suffix.lower()
    if suffix in _EXPORTS:
        given = shlex.join([checkpoint, "--to", _EXPORTS[suffix], "--out", str(out)])
        raise UserError(f"{out}: dfine convert writes no {suffix} files; dfine export {given} does")
    if suffix in _NO_FOLDERS:
        *some, last = _OFFICIAL_SUFFIXES
        endings = f"{', '.join(some)} or {last}"
        raise UserError(
            f"{out}: dfine convert writes a checkpoint folder, or a {endings} file, no {suffix}; files for other "
            f"runtimes are written by dfine export"
        )


def _check_place(out: Path, force: bool, described_by: str) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UserError(f"{out} exists; choose another place or add --force")
    if out.is_dir() and (out.suffix in _OFFICIAL_SUFFIXES or not (out / described_by).is_file()):
        raise UserError(f"{out} is a folder without {described_by}, so it is not replaced; choose another place")


def _read_names(file: Path) -> list[str]:
    names = [line.strip() for line in read_text(file).splitlines()]
    return [name for name in names if name]


def _leaves(tree: Any) -> list[Any]:
    return [leaf for node in tree.values() for leaf in _leaves(node)] if isinstance(tree, dict) else [tree]
