"""Discriminators that tell a student's outputs from a teacher's, and their two games.

Adversarial: a reversal of the gradient between student and discriminator makes the one
minimise what the other maximises. Cooperative, as the published programs of MEAL ran by
default: the discriminator's loss is simply added, so that the student helps it.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Adversary = Literal["reversal", "cooperative", "none"]
"""What the student does to the discriminators' loss: raise it, lower it, or have no
discriminators."""

MIN_WIDTH = 8
"""Of the hidden layers; ours: with few classes the papers' would have 1 or 2 units."""


class Discriminator(nn.Module):
    """Two scores per vector: that it is the student's, that it is a teacher's.

    Three linear layers (1 x 1 convolutions in MEAL), length -> length / shrink ->
    length / shrink^2 -> 2, with ReLU between them and none after the last: scores that
    cannot be negative never get below a loss of ln 2 for the wrong one.

    Args:
        length: of the vectors.
        shrink: by how much each hidden layer is narrower (MEAL: 2, MEAL-V2: 8).
        rate: factor on the gradients of its parameters. With sgd that is a learning
            rate of its own, relative to the student's.
    """

    def __init__(self, length: int, shrink: int, rate: float = 1.0):
        super().__init__()
        first = max(MIN_WIDTH, length // shrink)
        second = max(MIN_WIDTH, length // shrink**2)
        self.layers = nn.Sequential(
            nn.Linear(length, first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, 2),
        )
        for parameter in self.parameters():
            parameter.register_hook(lambda gradient: rate * gradient)

    def forward(self, vectors: Float[Tensor, "batch length"]) -> Float[Tensor, "b 2"]:
        """Return the scores."""
        return self.layers(vectors)

    def loss(
        self,
        student: Float[Tensor, "batch length"],
        teacher: Float[Tensor, "batch length"],
        adversary: Adversary,
    ) -> Float[Tensor, ""]:
        """Return the mean binary cross-entropy of telling the two apart.

        The targets are (1, 0) for the student's vectors and (0, 1) for the teacher's.
        The gradient of the parameters is the same in both games, that of `student` has
        the opposite sign.
        """
        if adversary == "reversal":
            student = reverse_gradient(student)
        scores = self(torch.cat([student, teacher.detach()]))
        targets = torch.zeros_like(scores)
        targets[: len(student), 0] = 1
        targets[len(student) :, 1] = 1
        return F.binary_cross_entropy_with_logits(scores, targets)


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def reverse_gradient(value: Tensor) -> Tensor:
    """Return `value`; its gradient changes sign (Ganin & Lempitsky 2015)."""
    return _Reversal.apply(value)
