"""The multi-view world of Allen-Zhu and Li: a ground truth for ensembles and students.

Each class has two features. Most images (multi-view) show both strongly; a share mu
(single-view) shows one of them only. A network that is trained on labels needs but one
feature per class to fit the multi-view images, and its seed decides which, so it errs
on single-view images of the other; an ensemble of several seeds does not (arXiv
2012.09816, section 2 and theorems 1 to 4).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Int64, UInt8
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.data.augmentation import Augmentation
from metaensemble.data.raw import ArraySource, RawData

MULTIVIEW = "multiview"
"""The word of the command line."""
BOTH = -1
"""The view of an image that shows both features of its class."""
STRONG = (1.0, 1.5)
"""Range of the coefficient of a feature that an image shows of its class."""
WEAK = (0.2, 0.4)
"""Range of the coefficient of a feature of another class."""
GREY, UNIT = 128, 127
"""A byte is GREY + UNIT * value; values beyond -1 and 1 are clipped."""


class MultiView(Config):
    """The numbers of a world; as text ``multiview,mu=0.2,classes=20``.

    An image has one channel; its columns are the patches of the theory, its rows their
    coordinates. A patch is z v + sum over all features v' of a v' + noise, with a
    uniform in [0, `clutter`]. Features that an image shows lie in one patch each, at
    random places; in the other patches z is 0. Features are rows of a Hadamard matrix:
    orthogonal signs of zero mean and equal brightness, which bytes hold exactly up to
    rounding, and which the data's own normalisation scales alike.
    """

    classes: int = Field(default=10, ge=2, le=1_024)
    """k; there are 2k features."""
    patches: int = Field(default=8, ge=2, le=4_096)
    """P: the images' width."""
    height: int = Field(default=64, ge=8, le=4_096)
    """d, the dimension of a patch: a power of two above 2k."""
    mu: float = Field(default=0.05, ge=0, le=1)
    """Share of single-view images, in every split."""
    weak: int = Field(default=4, ge=0)
    """Features of other classes that each image shows, with coefficients in `WEAK`; the
    theory draws each with probability s / k."""
    faint: float = Field(default=0.05, ge=0, le=1)
    """Largest coefficient of the other feature of its class in a single-view image."""
    clutter: float = Field(default=0.05, ge=0, le=1)
    """Largest coefficient of every feature in every patch: the feature noise."""
    noise: float = Field(default=0.1, ge=0, le=1)
    """Standard deviation of the Gaussian noise in each coordinate; features have length
    1."""
    train: int = Field(default=1_000, ge=2, le=10_000_000)
    """Number of training images, validation included."""
    test: int = Field(default=4_000, ge=1, le=10_000_000)
    """Number of test images."""
    seed: int = 0
    """What is drawn, split by split."""

    @model_validator(mode="after")
    def _fits(self) -> "MultiView":
        height, needed = self.height, 2 * self.classes
        if height & (height - 1) or height <= needed:
            raise InputError(
                f"the height must be a power of two above 2 * classes = {needed}, but "
                f"is {height}; choose {1 << needed.bit_length()}"
            )
        if self.weak > needed - 2:
            raise InputError(
                f"an image can show at most the {needed - 2} features of other classes,"
                f" but weak is {self.weak}; lower it"
            )
        if self.patches < self.weak + 2:
            raise InputError(
                f"an image needs a patch for each of the {self.weak + 2} features that "
                f"it shows, but patches is {self.patches}; raise it or lower weak"
            )
        return self

    @classmethod
    def parse(cls, text: str) -> "MultiView":
        """Return the world that ``multiview,key=value,...`` spells.

        Raises:
            InputError: the text is malformed, or a value is out of its range.
        """
        fields: dict[str, str] = {}
        for pair in text.split(",")[1:]:
            key, equals, value = (part.strip() for part in pair.partition("="))
            if not equals or key not in cls.model_fields or key in fields:
                raise InputError(
                    f"fields of {MULTIVIEW} must be key=value, each once, of "
                    f"{', '.join(cls.model_fields)}, but {text!r} has {pair!r}; "
                    "write it as multiview,mu=0.1,classes=10"
                )
            fields[key] = value
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            if isinstance(cause := first.get("ctx", {}).get("error"), InputError):
                raise cause from error
            key, why = first["loc"][0], first["msg"].removeprefix("Input ")
            raise InputError(
                f"the field {key!r} of {MULTIVIEW} {why}, but is {first['input']!r}; "
                "choose another value"
            ) from error

    @property
    def features(self) -> Float32[Tensor, "features height"]:
        """Return the 2k unit features; rows 2j and 2j + 1 are those of class j."""
        rows = torch.ones(1, 1)
        while len(rows) < self.height:  # Sylvester's construction
            rows = torch.cat([rows.repeat(1, 2), torch.cat([rows, -rows], 1)])
        return rows[1 : 2 * self.classes + 1] / self.height**0.5  # row 0 is constant

    def draw(self, split: str) -> "Drawn":
        """Return the images of a split: ``train`` or ``test``."""
        count = {"train": self.train, "test": self.test}[split]
        random = generator(self.seed, MULTIVIEW, split)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=random)

        rows = torch.arange(count)[:, None]
        labels = torch.randperm(count, generator=random) % self.classes
        views = torch.randint(2, (count,), generator=random)
        lonely = torch.zeros(count, dtype=torch.bool)
        lonely[torch.randperm(count, generator=random)[: round(self.mu * count)]] = True
        own = _within(STRONG, uniform(count, 2))
        absent = lonely[:, None] & (torch.arange(2) != views[:, None])
        own = torch.where(absent, self.faint * uniform(count, 2), own)
        shown = 2 * labels[:, None] + torch.arange(2)  # (count, 2)
        order = uniform(count, 2 * self.classes)
        order[rows, shown] = 2.0  # behind all others
        others = order.argsort(1)[:, : self.weak]  # (count, weak)
        weak = _within(WEAK, uniform(count, self.weak))
        features = self.features
        patches = self.noise * torch.randn(
            count, self.patches, self.height, generator=random
        )
        clutter = uniform(count, self.patches, 2 * self.classes)
        patches += (self.clutter * clutter) @ features
        places = uniform(count, self.patches).argsort(1)[:, : 2 + self.weak]
        chosen = features[torch.cat([shown, others], 1)]  # (count, 2 + weak, height)
        patches[rows, places] += torch.cat([own, weak], 1)[..., None] * chosen
        values = (GREY + UNIT * patches).round_().clamp_(0, 255)
        images = values.to(torch.uint8).mT[:, None].contiguous()
        return Drawn(images, labels, torch.where(lonely, views, BOTH))


@dataclass(frozen=True)
class Drawn:
    """The images of one split, and what they show."""

    images: UInt8[Tensor, "images 1 height patches"]
    """Bytes around `GREY`."""
    labels: Int64[Tensor, " images"]
    """Classes, in equal shares up to one image."""
    views: Int64[Tensor, " images"]
    """Which feature of its class a single-view image shows, 0 or 1; else `BOTH`."""

    @property
    def source(self) -> ArraySource:
        """Return what `load_data` reads."""
        return ArraySource(self.images, self.labels)


def is_multiview(spec: object) -> bool:
    """Return whether a word of the command line names this world."""
    return isinstance(spec, str) and spec.split(",")[0] == MULTIVIEW


def read_multiview(text: str = MULTIVIEW) -> RawData:
    """Return the world that a text spells; its images are not augmented."""
    world = MultiView.parse(text)
    return RawData(
        name=text,
        classes=tuple(str(label) for label in range(world.classes)),
        train=world.draw("train").source,
        test=world.draw("test").source,
        augmentation=Augmentation(),
    )


def _within(bounds: tuple[float, float], uniform: Tensor) -> Tensor:
    low, high = bounds
    return low + (high - low) * uniform
