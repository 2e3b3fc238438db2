"""What the study compares with: networks trained jointly, and random features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.methods import Batch, Learner
from metaensemble.methods.distillation import tempered_kl


class Summed(nn.Module):
    """Networks whose logits are added up, times a factor: an ensemble as one."""

    def __init__(self, networks: list[nn.Module], factor: float) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        """Return factor * sum of the networks' logits, (batch, classes)."""
        return self.factor * torch.stack([n(images) for n in self.networks]).sum(0)


class OnLabels(Learner):
    """A network trained on labels; the loss times a factor that raises its rate."""

    def __init__(self, network: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.factor = factor

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the labels' cross-entropy."""
        loss = F.cross_entropy(self.network(batch.inputs), batch.labels)
        return {"label": self.factor * loss}

    def export(self) -> nn.Module:
        """Return the network."""
        return self.network


class OnLogits(Learner):
    """A network distilled from the mean probabilities of teachers at a temperature."""

    def __init__(
        self, network: nn.Module, teacher_logits: Tensor, temperature: float
    ) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature
        probs = (teacher_logits / temperature).softmax(-1).mean(0)
        self.target = probs.log()  # (images, classes)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return T^2 KL(teachers || network) at T."""
        assert batch.indices is not None
        logits = self.network(batch.inputs)
        target = self.target[batch.indices]
        return {"distillation": tempered_kl(target, logits, self.temperature)}

    def export(self) -> nn.Module:
        """Return the network."""
        return self.network


class RandomFeatures(nn.Module):
    """A patch network whose filters stay as they were drawn; a linear head learns.

    logits = head(sum over patches of max(0, <w_r, x_p> - bias)): the head is all that
    is trained, so no feature is learned (arXiv 2012.09816, section 1 and figure 4).
    """

    def __init__(self, classes: int, height: int, width: int, bias: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, (height, 1), bias=False)
        nn.init.normal_(self.conv.weight, std=height**-0.5)
        self.conv.weight.requires_grad_(False)
        self.bias = bias
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 1, height, patches)."""
        x = (self.conv(images) - self.bias).relu().flatten(2).sum(2)  # (batch, width)
        return self.head(x)
