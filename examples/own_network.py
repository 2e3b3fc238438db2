"""Three checkpoints of your own network, one network: python examples/own_network.py.

Network and training are plain PyTorch. It is found as own_network:net, since a script's
folder, like the current one, is on the import path.
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metaensemble as me
from metaensemble.data import Normalization

TRAINED = Normalization(mean=(0.5,), std=(0.25,))  # how images were treated


def net(classes: int) -> nn.Module:
    """Return a small network; metaensemble fills in the number of classes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 16, classes)),
    )


def train(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """Return a network trained by a loop like yours, on its own third of the images."""
    torch.manual_seed(seed)
    network = net(10)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    own = torch.randperm(len(labels))[: len(labels) // 3]
    for _ in range(12):
        for batch in own.split(32):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network


def main() -> None:
    """Train three, save them, load them, and make one of them."""
    data = me.load_data("digits", limit_train=300, validation_fraction=0.3)
    images = TRAINED(data.train.batch(torch.arange(len(data.train))))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.pt" for name in "abc"]
        for seed, file in enumerate(files):
            torch.save(train(images, data.train.labels, seed).state_dict(), file)
        ensemble = me.load_ensemble(
            files, architecture="own_network:net", data=data, normalization=TRAINED
        )
        print(me.fuse(ensemble, data, me.methods.KD(epochs=60)).report.verdict)


if __name__ == "__main__":
    main()
