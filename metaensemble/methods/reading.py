"""What a generator reads of one set of teachers: weights, and what images told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaensemble.core.states import State
from metaensemble.methods.divergence import kl_divergence
from metaensemble.methods.frame import to_frame
from metaensemble.models import init_model
from metaensemble.teachers import Ensemble
from metaensemble.weightformer import (
    MERGED,
    Evidence,
    Predictor,
    WeightFormer,
    gather_evidence,
)


@dataclass(frozen=True)
class Sources:
    """Where a generator gets what the teachers' weights do not hold."""

    merge: Callable[[Ensemble, str], State]
    """Members and a merger's name to the state that it makes of them."""
    images: Callable[[Ensemble, int], tuple[Tensor, Tensor]]
    """Members and a number to so many unlabelled images, normalised for the members,
    and the ensemble's log-probabilities for them."""


@dataclass(frozen=True)
class Reading:
    """The generator's input for one set of teachers."""

    states: Sequence[Mapping[str, Tensor]]
    """The teachers' tensors, in the generator's order of channels."""
    base: State | None = None
    """The reference, where it is not made of the teachers' tokens."""
    evidence: Evidence | None = None
    """What images told, for a generator with data tokens."""


def read(
    generator: WeightFormer,
    frame: State | None,
    ensemble: Ensemble,
    states: Sequence[Mapping[str, Tensor]],
    sources: Sources | None,
) -> Reading:
    """Return what a generator reads of teachers whose tensors are in its frame.

    Args:
        generator: tells what it needs.
        frame: the order of channels; None where teachers are read as they are.
        ensemble: the teachers.
        states: their tensors, in the frame.
        sources: of merges and images; None where there are none.
    """
    config = generator.config
    evidence = None
    base = frame if config.reference == "frame" else None
    if sources and config.reference in MERGED:
        base = sources.merge(ensemble, config.reference)
        if frame is not None:
            (base,) = to_frame(ensemble.info, frame, [base])
    if sources and config.data_tokens:
        info = ensemble.info
        inputs, target = sources.images(ensemble, config.data_tokens)
        network = init_model(info.architecture, len(info.classes), info.input_shape, 0)
        evidence = gather_evidence(
            network.to(inputs.device),
            generator.spec,
            _on(inputs.device, generator.reference(states, base)),
            [_on(inputs.device, state) for state in states],
            inputs,
            lambda logits: kl_divergence(target, logits.log_softmax(-1), "forward"),
        )
    return Reading(states, base, evidence)


def reading_for(
    predictor: Predictor, ensemble: Ensemble, sources: Sources | None = None
) -> Reading:
    """Return what a predictor reads of an ensemble.

    Tensors come from the members' files one by one, as they are; or, where the
    predictor has a frame, lie in memory in its order of channels.

    Raises:
        InputError: the members are too few or too many, differ in architecture, or
            cannot be aligned.
    """
    predictor.network.refuse_number(len(ensemble))
    states = ensemble.lazy_states("a predictor's teachers must share one architecture")
    if predictor.frame is not None:
        states = to_frame(ensemble.info, predictor.frame, states)
    return read(predictor.network, predictor.frame, ensemble, states, sources)


def _on(device: torch.device, state: Mapping[str, Tensor]) -> State:
    return {name: state[name].to(device) for name in state}
