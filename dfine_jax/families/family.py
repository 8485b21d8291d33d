"""What a family of detectors is to the rest of the library: one typed value, made of functions and tables.

Training, evaluation, prediction, export and commands work with a ``Family`` and know no other name. A family lives in
a folder of its own beside this file and is found by the ``match`` in ``families/__init__.py``. What a family lacks it
says in its value (``reduced=None``, ``queries`` that return None); whoever asks for it gets one ``UserError``.

A network is a Flax module with the fields ``config`` (the family's model configuration) and ``compute_dtype``, called
as ``network(images, queries=None, *, train)`` and answering with ``typing.ModelOutput``. Its variables always have both
keys, ``params`` and ``batch_stats``; either may be empty.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    import flax.linen as nn
    import numpy as np
    from jaxtyping import Array, Float, Key

    from dfine_jax.config import Activation, Config, DataConfig, OptimConfig
    from dfine_jax.data.picture.images import Preprocess
    from dfine_jax.ops.postprocess import AnswerRules
    from dfine_jax.typing import Matching, ModelOutput, Norm, Targets

Start = Literal["nothing", "backbone", "detector"]  # what is pretrained
Optimizer = Literal["adamw", "adan", "muon"]
Variables = dict[str, Any]  # {"params": tree, "batch_stats": tree}
M = TypeVar("M")  # the family's model configuration
L = TypeVar("L")  # its loss configuration
Q = TypeVar("Q", bound="Queries")  # its denoising queries
P = TypeVar("P")  # what its matching hands to its terms


def _usual_rules(model: Any) -> AnswerRules:
    """Imported when asked: names and tables of families are told without NumPy."""
    del model
    from dfine_jax.ops.postprocess import AnswerRules

    return AnswerRules()


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the optimiser treats parameters whose ``/``-joined path matches and no earlier rule claimed."""

    pattern: str
    group: str  # ``base``, or a name for the rate's curve in the log
    lr: float  # full rate; 0.0: the parameters are frozen, and their gradients count in no norm
    decay: bool
    optimizer: Optimizer = "adamw"


class Queries(Protocol):
    """Additional queries that only train, drawn from the targets of a batch."""

    def in_parts(self, parts: int) -> Any:
        """The same for consecutive parts of the images: all leaves [parts, ...]."""
        ...


class Build(NamedTuple):
    """How a network is computed, not what."""

    bn_axis_name: str | None = None  # devices that share batch-norm statistics
    remat: tuple[str, ...] = ()  # parts computed again in the backward pass, to save memory
    compute_dtype: Any = None  # in place of the configuration's precision


class Reduction(NamedTuple):
    """Less work with the same weights; None: as trained."""

    num_queries: int | None = None
    prune: tuple[int, ...] = ()  # queries of the first decoder layer, of the second, and so on
    layers: int | None = None  # decoder layers that run


class Published(NamedTuple):
    """A file that somebody has released."""

    url: str
    sha256: str | None = None  # None: not known beforehand; that of the first download is kept
    licence: str = ""
    md5: str | None = None  # where the publisher says it
    cached: str = ""  # name in the cache, where the last part of the URL is that of other files too
    variant: str = ""  # whose sizes of input it takes, where its own name does not say that

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.cached or self.url.rpartition("/")[2]


class Repository(NamedTuple):
    """A commit of a Hugging Face repository."""

    commit: str
    sha256: str | None = None  # of its model.safetensors, where it is known
    licence: str = ""


class ClassLeaf(NamedTuple):
    """Parameters with one row per class, which start anew for classes that the weights do not know."""

    pattern: str  # of the ``/``-joined path
    axis: int  # of the classes


class Origin(NamedTuple):
    """What is known of weights of another program beside their tensors."""

    source: str  # for messages
    file: str  # name of the file that holds the tensors
    format: str  # name of the ``WeightFormat``
    is_published: bool  # it is in a family's tables
    activation: Activation | None  # asked for; None: to be found
    is_stated: bool  # a configuration beside the tensors says the activation, so that the model has it
    beside: Mapping[str, Any] = {}  # other entries of the file


class Anchor(NamedTuple):
    """A tensor that every file of some kind has, by which a state dict is found whatever it is wrapped in."""

    name: tuple[str, ...]  # its name in parts; what stands before it is a wrapper's
    outer: str = ""  # a part before it that, where it is there, belongs to the names


@dataclasses.dataclass(frozen=True)
class WeightFormat(Generic[M]):
    """Files of other programs. Tensors are those of one state dict, by the names they have there."""

    name: Literal["official", "huggingface"]
    anchor: Anchor
    # Architecture of tensors and, of a folder, its config.json; None: they are not of this family and format.
    recognise: Callable[[Mapping[str, np.ndarray], Mapping[str, Any] | None], M | None]
    # Variables, float32 NumPy, and the architecture with what tensors say about it. UserError lists what does not fit.
    read: Callable[[Mapping[str, np.ndarray], M], tuple[M, Variables]]
    # The inverse, for an input of (height, width); None where nothing writes the format.
    write: Callable[[M, Mapping[str, Any], tuple[int, int]], dict[str, np.ndarray]] | None = None
    # The config.json beside what is written, from the names of the classes; None where the format has none.
    settings: Callable[[M, Sequence[str]], dict[str, Any]] | None = None
    # Names of the classes that other entries of a file tell; None: they do not.
    class_names: Callable[[Mapping[str, Any]], Sequence[str] | None] = lambda beside: None
    # What stands beside the tensors in a PyTorch file that is written, from the names of the classes.
    remarks: Callable[[Config, Sequence[str]], Mapping[str, Any]] = lambda config, class_names: {}
    # The architecture with what other entries of a file say about it.
    stated: Callable[[M, Mapping[str, Any]], M] = lambda model, beside: model
    # Names of the classes alone, from names that a file has for rows of no class too.
    of_classes: Callable[[M, Sequence[str]], Sequence[str]] = lambda model, names: names


def sizes_around(model: Any, data: DataConfig) -> Sequence[tuple[int, int]]:
    """From 0.75 to 1.25 times the input's size, in steps of 32 pixels; that size ``data.multi_scale_repeat`` times."""
    from dfine_jax.data.augment.schedule import multi_scale_sizes

    del model
    return multi_scale_sizes(data.height_px, data.width_px, data.multi_scale_repeat)


class MultiScale(NamedTuple):
    """Training at several input sizes, where ``data.multi_scale_repeat`` is not 0."""

    sizes_px: Callable[[Any, DataConfig], Sequence[tuple[int, int]]] = sizes_around  # of the model; a batch takes one
    resize: Literal["nearest", "bilinear"] = "nearest"  # of a batch, on the device
    from_largest: bool = False  # batches are made at the largest of the sizes; else at the input's


def with_number(model: Any, number: int, names: Sequence[str] | None) -> Any:
    """The model with so many classes, whatever they are called."""
    del names
    return dataclasses.replace(model, num_classes=number)


def preprocess_as_configured(model: Any, data: DataConfig) -> Preprocess:
    """Size and resizing as ``data`` has them, values in [0, 1]: whatever the model."""
    from dfine_jax.data.picture.images import Preprocess

    del model
    return Preprocess.of(data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family(Generic[M, L, Q, P]):
    """One family. ``M`` and ``L`` are frozen dataclasses; ``M`` has the fields of ``config.ModelSection``."""

    name: str  # before the variant in a recipe's name, and the value of ``model.family``
    title: str  # for people
    Model: type[M]
    Loss: type[L]
    variants: Mapping[str, M]
    smallest: str  # variant that checks and demonstrations take
    methods: tuple[str, ...]  # whose recipes there are; the first is the family's own
    parts: tuple[str, ...]  # what ``Build.remat`` may name; the first is the backbone
    # Architecture.
    check: Callable[[M, L], None]  # ConfigError names the key
    grid_px: Callable[[M], int]  # sides of the input are multiples of it
    preprocess: Callable[[M, DataConfig], Preprocess] = preprocess_as_configured  # from a picture to the input
    # For a number of classes and, where they are known, their names.
    with_classes: Callable[[M, int, Sequence[str] | None], M] = with_number
    size_px: Callable[[M], tuple[int, int]] = lambda model: (640, 640)  # (height, width) where nobody says another
    multi_scale: MultiScale = MultiScale()
    build: Callable[[M, Build], nn.Module]
    first_conv: Callable[[M], tuple[str, ...]]  # path of the convolution of the images
    init: Callable[[M, Key[Array, ""]], Variables]
    reduced: Callable[[nn.Module, Variables, Reduction], nn.Module] | None
    # Training.
    # Of the masks it trains on to the input, divides ``grid_px``; None: none.
    mask_stride: Callable[[M], int | None] = lambda model: None
    answer_stride: int | None = None  # of the masks that it answers with; None: that of those it trains on
    answer_rules: Callable[[M], AnswerRules] = _usual_rules  # how its answers become detections
    is_transformer: bool = False  # backbone included; int8 is calibrated otherwise for such a network
    # The architecture for a task (``detect``, ``segment``), of that for another one, by the task's name.
    tasks: Mapping[str, Callable[[M], M]] = dataclasses.field(default_factory=lambda: {"detect": lambda model: model})
    queries: Callable[[Key[Array, ""], Targets, M, L], Q | None]
    match: Callable[[ModelOutput, Targets, Q | None, L], Matching[P]]
    # Weighted terms by "kind/where", scalars.
    terms: Callable[[ModelOutput, Targets, Q | None, Matching[P], Norm, M, L], dict[str, Float[Array, ""]]]
    kinds: Callable[[M, L], tuple[str, ...]]  # kinds of terms that there can be, that of the classes first
    rules: Callable[[M, OptimConfig], tuple[Rule, ...]]  # the last one takes the rest
    layered: bool = False  # they know optim.layer_decay and component_decay
    # Of variant, start, method and task: a table's name and line.
    recipe: Callable[[str, Start, str, str], tuple[str, Config]]
    # Weights.
    class_leaves: tuple[ClassLeaf, ...]
    frozen: tuple[str, ...]  # fields of the model, bool: parts that are held, for pretrained backbones only
    of_method: frozenset[str]  # fields of the model that recipes of other methods change
    free: frozenset[str]  # fields of the model that a run may choose; all others come from the weights
    adaptable: frozenset[str] = frozenset()  # of the others: those that a run may set, because training adapts to them
    # Leaves that start anew where a run has set adaptable fields otherwise than its weights (these come first), as a
    # pattern of their paths; None: all are taken over.
    renewed: Callable[[M, M], str | None] = lambda weights, model: None
    formats: tuple[WeightFormat[M], ...]
    # The configuration of weights of other programs: what tensors do not show (activations), and how they are trained
    # further. A guess is logged as a warning; UserError where nothing tells, or the file says otherwise than was asked.
    described: Callable[[M, Origin], Config]
    published: Mapping[str, Published]  # detectors, by name
    backbones: Mapping[str, Published]  # pretrained backbones, by ``backbone_of``
    backbone_anchors: tuple[Anchor, ...]
    backbone_prefix: str = "backbone."  # of its names in official files, which files of backbones alone do not have
    # Tensors of such a file in the sizes of the model, where they may be of other sizes.
    fitted_backbone: Callable[[Mapping[str, np.ndarray], M], Mapping[str, np.ndarray]] = lambda tensors, model: tensors
    official_keys: Callable[[M], Mapping[str, str]]  # name in official files of every leaf's path, in their order
    # Of Hugging Face, by ``owner/name``.
    repositories: Mapping[str, Repository] = dataclasses.field(default_factory=dict)
    backbone_of: Callable[[M], str]
