"""A member: one trained network in one file, with what is needed to run it again."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from torch import Tensor, nn

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError
from metaensemble.core.files import sha256_of
from metaensemble.core.guards import one_line
from metaensemble.core.states import (
    LazyState,
    State,
    hash_state,
    load_state,
    save_state,
)
from metaensemble.data import ImageData, Normalization
from metaensemble.models import Architecture, build
from metaensemble.teachers.tensors import (
    load_strictly,
    prefix_of,
    refuse_unfit,
    without_prefix,
)


class MemberInfo(Config):
    """What a member's file says about itself (header metadata ``metaensemble``)."""

    schema_version: Literal[1] = 1
    """Version of this record."""
    architecture: str
    """Canonical text of the architecture, such as ``resnet20,width=2``."""
    classes: tuple[str, ...]
    """Class names in the order of the logits."""
    input_shape: tuple[int, int, int]
    """Channels, height and width of an input image."""
    normalization: Normalization
    """Per-channel mean and deviation of the inputs, in units of [0, 1] pixels."""
    start: str | None = None
    """SHA-256 of the initial weights, if known; equal for members of one start."""
    training: dict[str, Any] = Field(default_factory=dict)
    """How the network was made: command, seed, hyperparameters."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Measured figures per split, as fractions."""


@dataclass(frozen=True)
class Member:
    """A trained network on disk; its tensors are read only when they are asked for."""

    path: Path
    sha256: str
    info: MemberInfo
    tensors: tuple[str, ...] = field(repr=False)
    """Names, sorted."""
    order: tuple[int, ...] | None = None
    """Which of its logits belongs to each class of the data, where it has them in
    another order; None where in the same."""
    image_size: tuple[int, int] | None = None
    """Height and width of the data's images, where the network takes another size;
    None where the same."""
    recorded: bool = True
    """Whether the file says what it is; of a bare state dict, the user does."""
    prefix: str = ""
    """What stands before all names in the file, such as ``model.`` of a Lightning
    module that holds the network."""

    @property
    def name(self) -> str:
        """Return the file's name, as messages show it."""
        return self.path.name

    def state(self) -> State:
        """Read and return the tensors; the caller owns them."""
        return without_prefix(load_state(self.path)[0], self.prefix)

    def lazy_state(self) -> LazyState:
        """Return the tensors, each read from the file when it is asked for."""
        return LazyState(self.path, self.prefix)

    def prepare(self, images: Tensor) -> Tensor:
        """Return images of the data as the network takes them: resized, normalised.

        Args:
            images: (batch, channels, height, width), bytes or floats in [0, 1].
        """
        return prepared(images, self.info)

    def in_order(self, logits: Tensor) -> Tensor:
        """Return logits (..., classes) in the data's order of classes."""
        return logits if self.order is None else logits[..., list(self.order)]

    def network(self) -> nn.Module:
        """Build the network, load the member's tensors, and return it in eval mode."""
        network = build_from(self.info)
        load_strictly(network, self.state(), str(self.path), self.info.architecture)
        return network.eval()


def prepared(images: Tensor, info: MemberInfo) -> Tensor:
    """Return images as the network of `info` takes them: resized, normalised.

    Resized bilinearly, with antialiasing, where their height or width is another.

    Args:
        images: (batch, channels, height, width), bytes or floats in [0, 1].
        info: of the network.
    """
    if images.shape[2:] == info.input_shape[1:]:
        return info.normalization(images)
    return info.normalization(sized_pixels(images, info.input_shape[1:]))


def sized_pixels(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images as floats in [0, 1], resized if they are of another size.

    Args:
        images: (batch, channels, height, width), bytes or floats in [0, 1].
        size: height and width.
    """
    pixels = images if images.is_floating_point() else images.float() / 255
    if images.shape[2:] == size:
        return pixels
    return F.interpolate(pixels, size, mode="bilinear", antialias=True)


def build_from(info: MemberInfo) -> nn.Module:
    """Build the network that `info` describes, with fresh weights."""
    return build(info.architecture, len(info.classes), info.input_shape)


def load_member(
    path: Path,
    *,
    architecture: str | None = None,
    data: ImageData | None = None,
    normalization: Normalization | None = None,
) -> Member:
    """Return the member in `path`, checked to be readable, finite and complete.

    Args:
        path: a file that `save_member` wrote, or a bare state dict.
        architecture: for a bare state dict, what it is; for a member whose record names
            an import path, the user's consent to import it.
        data: for a bare state dict, where classes, input shape and normalisation come
            from; the member's classes are matched to its by name.
        normalization: for a bare state dict, that of its training; default: of `data`.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file is broken, its tensors are not those of its architecture,
            or its classes or channels are not those of `data`.
    """
    state, metadata = load_state(path)
    if metadata is not None:
        info = _parse_info(path, metadata)
    elif architecture is None or data is None:
        raise InputError(
            f"a bare state dict must come with its architecture and data, but {path} "
            "says nothing about itself; add --architecture NAME and --data D"
        )
    else:
        info = MemberInfo(
            architecture=str(Architecture.parse(architecture)),
            classes=data.classes,
            input_shape=data.input_shape,
            normalization=normalization or data.normalization,
        )
    wanted = _wanted(path, info, architecture)
    prefix = prefix_of(wanted, state)
    state = without_prefix(state, prefix)
    refuse_unfit(wanted, state, str(path), info.architecture)
    names = tuple(sorted(state))
    recorded = metadata is not None
    member = Member(
        path, sha256_of(path), info, names, recorded=recorded, prefix=prefix
    )
    if data is None:
        return member
    return fitted_to(member, data.classes, data.input_shape, data.name)


def fitted_to(
    member: Member,
    classes: tuple[str, ...],
    input_shape: tuple[int, int, int],
    whose: str,
) -> Member:
    """Return a member whose outputs follow these classes, for images of this shape.

    Classes are matched by name; images of another height and width are resized.

    Args:
        member: as its file says.
        classes: in the order wanted.
        input_shape: channels, height and width of the images.
        whose: they are, for messages.

    Raises:
        InputError: the classes or the channels are others.
    """
    info = member.info
    order = class_order(info.classes, classes, str(member.path), whose)
    if info.input_shape[0] != input_shape[0]:
        raise InputError(
            f"members and data must agree on the channels, but {member.path} takes "
            f"{info.input_shape[0]} and {whose} has {input_shape[0]}; "
            "choose other data"
        )
    same = info.input_shape == input_shape
    image_size = None if same else (input_shape[1], input_shape[2])
    return replace(member, order=order, image_size=image_size)


def class_order(
    own: tuple[str, ...], wanted: tuple[str, ...], who: str, whose: str
) -> tuple[int, ...] | None:
    """Return the place among `own` classes of each wanted one; None if all the same.

    Args:
        own: class names in the order of a network's logits.
        wanted: the same names, in the order wanted.
        who: has the former, for messages.
        whose: the latter are, for messages.

    Raises:
        InputError: they are not the same names.
    """
    if own == wanted:
        return None
    if len(own) != len(wanted):
        raise InputError(
            f"members and data must have the same classes, but {who} has {len(own)} "
            f"and {whose} has {len(wanted)}; "
            "choose the data that the members were trained on"
        )
    for names, holder in ((own, who), (wanted, whose)):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(
                f"classes must have different names to be matched by them, but "
                f"{holder} has {twice!r} twice; "
                "choose the data that the members were trained on"
            )
    if set(own) != set(wanted):
        odd = next(name for name in own if name not in wanted)
        lacking = next(name for name in wanted if name not in own)
        raise InputError(
            f"members and data must name their classes alike, but {who} "
            f"has {odd!r}, which {whose} has not, and lacks {lacking!r}; "
            "choose the data that the members were trained on"
        )
    return tuple(own.index(name) for name in wanted)


def save_member(path: Path, state: Mapping[str, Tensor], info: MemberInfo) -> Member:
    """Write a member file, whole or not at all, and return it as a `Member`."""
    save_state(path, state, info.model_dump(mode="json"))
    return Member(path, sha256_of(path), info, tuple(sorted(state)))


def start_of(network: nn.Module) -> str:
    """Return the identity of a network's present weights, for `MemberInfo.start`."""
    return hash_state(dict(network.named_parameters()))


def _wanted(path: Path, info: MemberInfo, consent: str | None) -> State:
    """Return tensors like those of the network of `info`, without values."""
    named: Architecture | None = None
    try:
        named = Architecture.parse(info.architecture)
        if named.is_import_path:
            _refuse_foreign_code(path, named, consent)
        return _blank(info.architecture, len(info.classes), info.input_shape)
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"the network of {path} must be known: {error}") from error
    except Exception as error:  # sizes beyond all measure fail in many ways
        if named is not None and named.is_import_path:
            raise InputError(
                f"a factory must make a network of {len(info.classes)} classes for "
                f"images {info.input_shape}, but {named} failed with "
                f"{type(error).__name__}: {one_line(error)}; mend it"
            ) from error
        raise InputError(
            f"{path} must be a member whose network can be built, but "
            f"{info.architecture} for images {info.input_shape} cannot "
            f"({one_line(error)}); make it again with metaensemble teach"
        ) from error


@lru_cache(maxsize=16)  # many members of one architecture are checked in a row
def _blank(
    architecture: str, classes: int, input_shape: tuple[int, int, int]
) -> dict[str, Tensor]:
    named = Architecture.parse(architecture)
    # Without memory: a hostile record may ask for terabytes. Code of the user's own may
    # not bear it, but is consented to.
    with torch.device("cpu" if named.is_import_path else "meta"):
        network = build(named, classes, input_shape)
    return {n: tensor.to("meta") for n, tensor in network.state_dict().items()}


def _parse_info(path: Path, metadata: Mapping[str, Any]) -> MemberInfo:
    try:
        return MemberInfo.model_validate(metadata)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise InputError(
            f"{path} must be a member that metaensemble wrote, but {where} in its "
            f"metadata is wrong ({one_line(first['msg'])}); "
            "make it again with metaensemble teach"
        ) from error


def _refuse_foreign_code(path: Path, named: Architecture, consent: str | None) -> None:
    """Refuse to import what a file names unless the user named it, too."""
    if consent is None or Architecture.parse(consent).plain != named.plain:
        raise InputError(
            f"code named by a file is not run unless you name it, too, but {path} asks "
            f"for {named}; if you trust it, add --architecture {named}"
        )
