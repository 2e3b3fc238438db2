"""Teachers' networks at hand, for methods that need more than their cached logits."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from metaensemble.models.taps import Tap, penultimate, stages, tapped
from metaensemble.teachers.ensemble import Ensemble
from metaensemble.teachers.member import Member


class LiveTeacher:
    """One teacher's network: frozen, in eval mode, on the data's images and classes.

    Neither parameters nor buffers ever change. No `nn.Module`, so that a learner that
    holds it neither trains nor saves it.
    """

    def __init__(self, member: Member, device: str | torch.device = "cpu") -> None:
        self.member = member
        self.network: nn.Module = member.network().to(device)
        self.network.requires_grad_(False)

    @property
    def stages(self) -> tuple[Tap, ...]:
        """Return one tap per stage of the network."""
        return stages(self.network, self.member.info.input_shape)

    @property
    def penultimate(self) -> Tap:
        """Return the tap of the vector before the logits."""
        return penultimate(self.network, self.member.info.input_shape)

    def __call__(
        self, pixels: Tensor, taps: Sequence[Tap] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Return logits (batch, classes) and the tapped maps of images.

        Gradients flow to `pixels` where these want them, never to the network.

        Args:
            pixels: (batch, channels, height, width), bytes or floats in [0, 1].
            taps: values of this network to return.
        """
        self.network.eval()
        logits, maps = tapped(self.network, taps, self.member.prepare(pixels))
        return self.member.in_order(logits), maps


class LiveTeachers:
    """The networks of all members of an ensemble, in their order."""

    def __init__(self, ensemble: Ensemble, device: str | torch.device = "cpu") -> None:
        self._teachers = [LiveTeacher(member, device) for member in ensemble.members]

    def __len__(self) -> int:
        return len(self._teachers)

    def __getitem__(self, index: int) -> LiveTeacher:
        return self._teachers[index]

    def __iter__(self) -> Iterator[LiveTeacher]:
        return iter(self._teachers)

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits (members, batch, classes) of images."""
        return torch.stack([teacher(pixels)[0] for teacher in self._teachers])
