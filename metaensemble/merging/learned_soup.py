"""The learned soup: how much each member gives to each tensor is found by descent."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

# The only common base of BatchNorm1d, 2d, 3d and SyncBatchNorm.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from metaensemble.core.seeds import generator, permutation
from metaensemble.core.states import State
from metaensemble.data import Split, batch_indices, concatenate, steps_per_epoch
from metaensemble.merging.contract import Bench, Merged, Merger
from metaensemble.merging.greedy_soup import Metric, merit
from metaensemble.merging.soup import uniform_soup
from metaensemble.teachers import Ensemble, MemberInfo
from metaensemble.teachers.member import build_from
from metaensemble.teachers.tensors import load_strictly

Part = Literal["tensor", "layer", "model"]
States = Sequence[Mapping[str, Tensor]]
SMALL = 2**30
"""Bytes of all members together up to which they are held in memory."""


class LearnedSoup(Merger):
    """Average with shares that are learned, beginning with the uniform soup.

    Of each tensor, the members' shares are a softmax. One scale of the logits is
    learned beside them; it changes no decision, and is folded into the last linear
    layer. If validation prefers the uniform soup, that is what comes out.

    Unlike the paper's code, which holds all members at once, this needs memory for the
    merged network, its gradient and one tensor of a member: the gradient of a share is
    the inner product of the merged tensor's gradient and the member's tensor.
    """

    summary: ClassVar[str] = "average the weights, each member's share learned"
    paper: ClassVar[str] = "Wortsman et al. 2022, Model soups (2203.05482), learned"
    needs: ClassVar[tuple[str, ...]] = (
        "one architecture",
        "one start",
        "validation images",
    )
    cost: ClassVar[str] = "some steps on one number per tensor and member"

    name: Literal["learned_soup"] = "learned_soup"
    """The method's name."""
    target: Literal["ensemble", "labels"] = "ensemble"
    """What is learned from: the ensemble's probabilities on training images, without
    their labels; or, as in the paper, the labels of the validation images."""
    per: Part = "tensor"
    """What has shares of its own: each tensor, each layer, or the whole model."""
    scale: bool = True
    """Learn a scale of the logits, too."""
    images: int = Field(default=2500, ge=2)
    """With target ensemble, how many training images (all if fewer)."""
    passes: float = Field(default=5.0, gt=0)
    """Passes over the images."""
    images_per_step: int = Field(default=250, ge=2)
    """Batch-norm layers use the statistics of these."""
    rate: float = Field(default=0.05, gt=0)
    """Rate of AdamW."""
    metric: Metric = "kl"
    """By which validation chooses between the uniform and the learned soup: kl (the
    divergence from the ensemble, without labels), nll, or accuracy (ties: NLL)."""
    hold: bool | None = None
    """Hold all members in memory, which is faster; default: if below 1 GiB."""

    def merge(self, members: Ensemble, bench: Bench) -> Merged:
        """Return the learned soup, or the uniform one if validation prefers it."""
        lazy = members.lazy_states("a soup's members must share one architecture")
        info = members.info
        uniform = Merged(uniform_soup(lazy), info)
        before = merit(bench.judge(uniform), self.metric)
        size = sum(tensor.nbytes for tensor in uniform.state.values()) * len(lazy)
        hold = size <= SMALL if self.hold is None else self.hold
        states: States = [dict(state) for state in lazy] if hold else lazy
        network = build_from(info)
        load_strictly(network, uniform.state, "the uniform soup", info.architecture)
        del uniform  # quickly made again: memory is for the soup and its gradient
        groups = groups_of(network, self.per)
        shares, scale = self.learn(network, groups, states, members, bench)
        del network
        state = uniform_soup(states)
        for name, group in groups.items():
            tensor = mixed(states, {name: 0}, shares[group : group + 1])[name]
            state[name] = tensor.to(state[name].dtype)
        notes = [
            f"shares per {self.per} from {shares.min():.3f} to {shares.max():.3f} "
            f"(uniform: {1 / len(lazy):.3f})"
        ]
        if self.scale:
            scaled = with_scaled_logits(info, state, scale)
            state = state if scaled is None else scaled
            what = "left out" if scaled is None else "folded into the last layer"
            notes.append(f"scale of the logits {scale:.3f}, {what}")
        if self.target == "labels":
            notes.append(
                "shares were learned on the validation images, so that figures of "
                "validation flatter this student"
            )
        after = merit(bench.judge(Merged(state, info)), self.metric)
        figures = f"{self.metric} {abs(before[0]):.4f}, then {abs(after[0]):.4f}"
        if after > before:
            notes.append(f"uniform and learned soup on validation: {figures}")
            return Merged(state, info, tuple(notes))
        note = f"the uniform soup, which learning did not surpass: {figures}"
        return Merged(uniform_soup(states), info, (note,))

    def learn(
        self,
        network: nn.Module,
        groups: Mapping[str, int],
        states: States,
        members: Ensemble,
        bench: Bench,
    ) -> tuple[Float[Tensor, "groups members"], float]:
        """Return every group's shares (float64) and the scale of the logits.

        Norms use the statistics of the batch; their running ones are re-estimated by
        whoever uses the soup. Dropout is off.

        Args:
            network: of the members' architecture; used up.
            groups: see `groups_of`.
            states: the members' tensors.
            members: the ensemble.
            bench: images and seed.
        """
        split, targets = self._lesson(members, bench)
        normalization, device = members.info.normalization, bench.device
        batch = min(self.images_per_step, len(split))
        steps = max(1, round(self.passes * steps_per_epoch(len(split), batch)))
        network = network.to(device).eval()
        for module in network.modules():
            module.training = isinstance(module, BatchNorm)
        for parameter in network.parameters():
            parameter.data = parameter.data.new_empty(0)  # every step brings its own
        shape = max(groups.values()) + 1, len(states)
        scores = torch.zeros(shape, device=device, requires_grad=True)
        log_scale = torch.zeros((), device=device, requires_grad=True)
        learnt = [scores, log_scale] if self.scale else [scores]
        optimizer = torch.optim.AdamW(learnt, lr=self.rate, weight_decay=0.0)
        for step in range(steps):
            indices = batch_indices(len(split), batch, bench.seed, step)
            inputs = normalization(split.batch(indices).to(device))
            target = targets[indices].to(device)
            optimizer.zero_grad()
            shares = scores.softmax(1)
            loss, gradient = loss_and_gradient(
                network,
                states,
                groups,
                shares.detach(),
                log_scale.exp(),
                inputs,
                target,
            )
            shares.backward(gradient)
            optimizer.step()
            if step % 10 == 0 or step + 1 == steps:
                bench.say(f"learned soup, step {step + 1} of {steps}: loss {loss:.4f}")
        return scores.detach().cpu().double().softmax(1), log_scale.exp().item()

    def _lesson(self, members: Ensemble, bench: Bench) -> tuple[Split, Tensor]:
        """Return images and the probabilities of the classes to be reached on them."""
        if self.target == "labels":
            split = bench.data.validation
            return split, F.one_hot(split.labels, len(members.info.classes)).float()
        split = bench.data.train
        if bench.data.unlabelled is not None:
            split = concatenate([split, bench.data.unlabelled])
        chosen = permutation(len(split), bench.seed, "learned soup")[: self.images]
        split = split.subset(chosen)
        logits = bench.cache.ensemble_logits(members, split)
        return split, members.log_probs(logits).exp()


def groups_of(network: nn.Module, per: Part) -> dict[str, int]:
    """Return which parameters have their shares in common: name to number from 0.

    A parameter that has two names is in one group under both.
    """
    first_names: dict[int, str] = {}
    groups: dict[str, int] = {}
    numbers: dict[str, int] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        first = first_names.setdefault(id(parameter), name)
        layer = first.rpartition(".")[0]
        part = {"tensor": first, "layer": layer, "model": ""}[per]
        groups[name] = numbers.setdefault(part, len(numbers))
    return groups


def mixed(
    states: States, groups: Mapping[str, int], shares: Float[Tensor, "groups members"]
) -> State:
    """Return the named tensors' means, weighted by the shares of their groups.

    Computed in the precision and on the device of `shares`, one tensor of one member at
    a time.
    """
    soup: State = {}
    for name, group in groups.items():
        total = states[0][name].to(shares) * shares[group, 0]
        for number, state in enumerate(states[1:], 1):
            total += state[name].to(shares) * shares[group, number]
        soup[name] = total
    return soup


def loss_and_gradient(
    network: nn.Module,
    states: States,
    groups: Mapping[str, int],
    shares: Float[Tensor, "groups members"],
    scale: Float[Tensor, ""],
    inputs: Float[Tensor, "batch channels height width"],
    targets: Float[Tensor, "batch classes"],
) -> tuple[float, Float[Tensor, "groups members"]]:
    """Return the soup's cross-entropy and its gradient with respect to the shares.

    That with respect to what `scale`, the factor of the logits, was made of is added to
    its ``grad``. No tensor of the soup outlives the call.
    """
    soup = mixed(states, groups, shares)
    for tensor in soup.values():
        tensor.requires_grad_()
    logits = functional_call(network, soup, (inputs,))
    loss = F.cross_entropy(logits * scale, targets)
    loss.backward()
    gradients = {name: t.grad for name, t in soup.items() if t.grad is not None}
    return loss.item(), share_gradients(states, groups, gradients, shares)


def share_gradients(
    states: States,
    groups: Mapping[str, int],
    gradients: Mapping[str, Tensor],
    shares: Float[Tensor, "groups members"],
) -> Float[Tensor, "groups members"]:
    """Return the loss's gradient with respect to the shares.

    By the chain rule: of group g and member i, the sum over the group's tensors t of
    <gradient of t, t of member i>.

    Args:
        states: the members.
        groups: parameter to group.
        gradients: of the soup's tensors; those that are missing are zero.
        shares: of which only shape, precision and device count.
    """
    result = torch.zeros_like(shares)
    for name, gradient in gradients.items():
        for number, state in enumerate(states):
            product = gradient.flatten() @ state[name].to(gradient).flatten()
            result[groups[name], number] += product
    return result


@torch.no_grad()
def with_scaled_logits(info: MemberInfo, state: State, scale: float) -> State | None:
    """Return the state of the network whose logits are `scale` times the state's own.

    The last linear layer is scaled; on random images it is proved that this scales the
    logits. None if it does not, or if there is no such layer.
    """
    network = build_from(info).eval()
    linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear or f"{linear[-1]}.weight" not in state:
        return None
    head = f"{linear[-1]}.weight", f"{linear[-1]}.bias"
    scaled = {k: t * scale if k in head else t for k, t in state.items()}
    images = torch.randn(4, *info.input_shape, generator=generator("logits"))
    network.load_state_dict(state, strict=False)
    wanted = network(images) * scale
    network.load_state_dict(scaled, strict=False)
    close = torch.allclose(network(images), wanted, rtol=1e-3, atol=1e-5)
    return scaled if close else None
