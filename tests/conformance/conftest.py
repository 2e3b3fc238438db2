"""What the conformance tests of all methods are made of."""

from pathlib import Path
from typing import Any

import torch

from metaensemble.data import Augmentation, ImageData, Normalization, TensorSplit
from metaensemble.methods import TrainedMethod
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble, MemberInfo, save_member
from metaensemble.workflows.registry import METHODS, MethodUnion, make_method

SMALL: dict[str, dict[str, Any]] = {
    "auto": {"budget": "24images"},
    "self_distillation": {"generations": 1},
    "srm": {"dictionary_epochs": 1, "init_epochs": 1},
    "student_ensemble": {"students": 2},
    "weightformer": {"width": 8, "heads": 1, "depth": 1, "tune_epochs": 1},
}
"""Hyperparameters that keep a method's own networks small."""

FAMILIES = {
    "mlp": ("mlp,width=8", 8),
    "convnet": ("convnet,width=4", 8),
    "resnet20": ("resnet20,width=0.25", 8),
    "wrn16_1": ("wrn16_1", 8),
    "vit": ("vit_small_32x32,depth=1,dim=16,heads=2,mlp_dim=16", 8),
    "vgg11_bn": ("vgg11_bn,head=small", 32),
}
"""One small network of each family, and the size of its images."""


def coloured(size: int) -> ImageData:
    """Three classes of noise in different colours."""
    random = torch.Generator().manual_seed(0)

    def split(count: int) -> TensorSplit:
        labels = torch.arange(count) % 3
        images = torch.randint(0, 256, (count, 3, size, size), generator=random)
        images[torch.arange(count), labels] //= 4
        return TensorSplit(images.to(torch.uint8), labels)

    train = split(12)
    return ImageData(
        name="colours",
        classes=("red", "green", "blue"),
        train=train,
        validation=split(6),
        test=split(9),
        unlabelled=None,
        augmentation=Augmentation(pad=1, flip=True),
        normalization=Normalization.of(train),
    )


def untrained(folder: Path, data: ImageData, architecture: str, count: int) -> Ensemble:
    """Members with the small differences that methods of one start expect."""
    members = []
    for seed in range(count):
        network = init_model(architecture, data.num_classes, data.input_shape, 0)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=random)
        info = MemberInfo(
            architecture=architecture,
            classes=data.classes,
            input_shape=data.input_shape,
            normalization=data.normalization,
            start="one",
        )
        path = folder / f"{seed}.safetensors"
        members.append(save_member(path, network.state_dict(), info))
    return Ensemble(tuple(members))


def small(name: str) -> MethodUnion:
    """The method with one step of training."""
    fields: dict[str, Any] = dict(SMALL.get(name, {}))
    if issubclass(METHODS[name], TrainedMethod):
        fields |= {"epochs": 1, "batch_size": 12}
    return make_method(name, **fields)
