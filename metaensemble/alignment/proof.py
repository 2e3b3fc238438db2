"""The proof of a permutation spec: the logits stay, the weights do not."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaensemble.alignment.apply import (
    Permutations,
    apply_permutations,
    random_permutations,
)
from metaensemble.alignment.groups import PermutationSpec
from metaensemble.core.errors import InputError
from metaensemble.core.seeds import generator
from metaensemble.core.states import State
from metaensemble.models.modes import modes_kept

TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-9}
"""Largest change of a logit, relative to the largest logit, by precision."""


def prove(
    network: nn.Module,
    spec: PermutationSpec,
    input_shape: tuple[int, ...],
    seed: int = 0,
) -> None:
    """Check that the spec's permutations leave what the network computes unchanged.

    Random weights near the network's own, random running statistics, a random image, in
    eval mode; then the same under a random permutation of every group. Single
    precision acquits, for it is fast; only double precision convicts. The network stays
    as it is.

    Raises:
        InputError: the logits change, or a group changes no weight; the groups at fault
            are named.
    """
    random = generator(seed, "proof")
    state = _generic(network, random)
    images = torch.randn(1, *input_shape, generator=random)
    permutations = random_permutations(spec, seed)
    trial = _Trial(network, spec, state, images)
    with modes_kept(network):
        network.eval()
        if not trial.passes(permutations, torch.float32) and not trial.passes(
            permutations, torch.float64
        ):
            faulty = [
                name
                for name, permutation in permutations.items()
                if not trial.passes({name: permutation}, torch.float64)
            ]
            raise InputError(
                "permuting a network must not change its logits, but these groups do: "
                f"{', '.join(faulty) or 'only all of them together'}; correct their "
                "axes, or leave them out with spec.without"
            )
    for group in spec.groups:
        alone = PermutationSpec(groups=(group,))
        one = {group.name: permutations[group.name]}
        weights = {a.tensor: state[a.tensor] for a in group.axes if not a.statistic}
        tensors = weights | {a.tensor: state[a.tensor] for a in group.axes}
        changed = apply_permutations(alone, one, tensors)
        if all(torch.equal(changed[name], weights[name]) for name in weights):
            raise InputError(
                f"permuting a group must change weights, but {group.name!r} changes "
                "none; leave it out with spec.without"
            )


def _generic(network: nn.Module, random: torch.Generator) -> State:
    """Return the network's state with noise: no two channels are alike.

    Layers that start at zero (heads, biases) would hide mistakes.
    """
    state: State = {}
    same: dict[int, Tensor] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in same:
            value = tensor.detach().cpu()
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=random)
                if value.ndim > 1:  # centred, so that no common mean drowns the rest
                    noise = (noise - 0.5) * 2 / max(value[0].numel(), 1) ** 0.5
                value = value.float() + noise / 2
            same[id(tensor)] = value
        state[name] = same[id(tensor)]
    return state


class _Trial:
    """Logits of a state before and after permutations, on the same images."""

    def __init__(
        self, network: nn.Module, spec: PermutationSpec, state: State, images: Tensor
    ) -> None:
        self.network = network
        self.spec = spec
        self.state = state
        self.images = images
        self._expected: dict[torch.dtype, Tensor] = {}

    def passes(self, permutations: Permutations, dtype: torch.dtype) -> bool:
        """Return whether the logits stay the same up to rounding."""
        if dtype not in self._expected:
            self._expected[dtype] = self._logits(self.state, dtype)
        expected = self._expected[dtype]
        permuted = apply_permutations(self.spec, permutations, self.state)
        change = (self._logits(permuted, dtype) - expected).abs().max()
        return bool(change <= TOLERANCE[dtype] * expected.abs().max())

    def _logits(self, state: State, dtype: torch.dtype) -> Tensor:
        cast = {
            n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()
        }
        first = next(self.network.parameters(), self.images)
        cast = {name: tensor.to(first.device) for name, tensor in cast.items()}
        with torch.no_grad():
            images = self.images.to(first.device, dtype)
            logits = functional_call(self.network, cast, (images,), tie_weights=False)
        if not isinstance(logits, Tensor):
            raise InputError(
                "a spec can be proved only for a network that returns logits, but this "
                f"one returned a {type(logits).__name__}; wrap it"
            )
        if not bool(torch.isfinite(logits).all()) or float(logits.std()) == 0:
            raise InputError(
                "a spec is proved by logits that are finite and differ, but random "
                "weights gave none; check the network's forward"
            )
        return logits
