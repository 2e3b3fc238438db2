"""A trained generator in a file, with what it needs to be used by a stranger."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.guards import one_line
from metaensemble.core.states import State, load_state, save_state
from metaensemble.data import Normalization
from metaensemble.weightformer.config import WeightFormerConfig
from metaensemble.weightformer.evidence import Evidence
from metaensemble.weightformer.network import WeightFormer
from metaensemble.weightformer.tokens import TokenSpec, write_layer

FRAME_PREFIX = "frame/"
"""Before the names of the frame's tensors in a predictor's file."""


class PredictorInfo(Config):
    """What a predictor's file says about itself."""

    kind: Literal["weightformer-predictor"] = "weightformer-predictor"
    """Tells predictors from members."""
    schema_version: Literal[1] = 1
    """Version of this record."""
    config: WeightFormerConfig
    """The generator's shape and head."""
    spec: TokenSpec
    """The tokens of its architecture."""
    architecture: str
    """The architecture that it reads and writes."""
    classes: tuple[str, ...]
    """Class names of its teachers."""
    input_shape: tuple[int, int, int]
    """Channels, height and width of its teachers' inputs."""
    normalization: Normalization
    """Input normalisation of its teachers."""
    trained_on: tuple[str, ...]
    """SHA-256 of the members that it was trained on."""
    training: dict[str, Any] = Field(default_factory=dict)
    """How it was trained, and what was measured on validation."""
    frame: bool = False
    """Whether a network lies beside the generator to which teachers are aligned."""


@dataclass(frozen=True)
class Predictor:
    """A generator ready to predict."""

    network: WeightFormer
    info: PredictorInfo
    frame: State | None = None
    """The network whose order of channels the generator was trained in; None where
    teachers are read as they are."""

    @torch.no_grad()
    def predict(
        self,
        states: Sequence[Mapping[str, Tensor]],
        base: Mapping[str, Tensor] | None = None,
        evidence: Evidence | None = None,
        step: float = 1.0,
    ) -> State:
        """Return the student's parameters for these teachers, in one forward pass.

        Buffers are the mean of the teachers': running statistics must be re-estimated
        on images before the student is used (`models.reestimate_batchnorm`). Of states
        that are read from their files (`LazyState`) one layer is held at a time.

        Args:
            states: the teachers' tensors. If there is a frame, they must have been
                brought to it, as `methods.reading_for` does.
            base: the reference, if the generator does not make it of the tokens; if it
                does, a base that is given takes its place.
            evidence: what images told, for a generator with data tokens.
            step: how far to go from the reference (0) to the prediction (1).

        Raises:
            InputError: the teachers' tensors are not those of the architecture, or they
                are too few or too many.
        """
        self._refuse_other_tensors(states)
        spec = self.info.spec
        network = self.network.eval()
        layers = network.layers(states, base=base, evidence=evidence, step=step)
        like = {name: states[0][name].dtype for name in spec.shapes} if states else {}
        written: State = {
            name: torch.empty(shape, dtype=like.get(name))
            for name, shape in spec.shapes.items()
        }
        for layer, (tokens, _) in zip(spec.layers, layers, strict=True):
            write_layer(layer, tokens, written)
        written.update({alias: written[name] for alias, name in spec.ties.items()})
        return complete_state(written, states)

    def _refuse_other_tensors(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        for position, state in enumerate(states):
            for name, shape in self.info.spec.shapes.items():
                got = tuple(state[name].shape) if name in state else None
                if got != tuple(shape):
                    raise InputError(
                        f"this predictor reads {self.info.architecture}, but teacher "
                        f"{position + 1} has {name!r} "
                        f"{'missing' if got is None else f'of shape {got}'} where it "
                        f"needs {tuple(shape)}; choose members of that architecture"
                    )


def complete_state(
    parameters: Mapping[str, Tensor], states: Sequence[Mapping[str, Tensor]]
) -> State:
    """Return parameters with the mean of the teachers' buffers.

    In the teachers' order of names and in their dtypes.
    """
    whole: State = {}
    for name, like in states[0].items():
        if name in parameters:
            whole[name] = parameters[name].detach().to(like.dtype)
        elif like.is_floating_point():
            whole[name] = torch.stack([s[name].float() for s in states]).mean(0)
            whole[name] = whole[name].to(like.dtype)
        else:
            whole[name] = like.clone()
    return whole


def save_predictor(path: Path, predictor: Predictor) -> None:
    """Write a predictor as one safetensors file, whole or not at all."""
    info = predictor.info.model_copy(update={"frame": predictor.frame is not None})
    frame = predictor.frame or {}
    state = predictor.network.state_dict()
    state |= {FRAME_PREFIX + name: tensor for name, tensor in frame.items()}
    save_state(path, state, info.model_dump(mode="json"))


def load_predictor(path: Path) -> Predictor:
    """Return the predictor in a file.

    Raises:
        MissingFileError: there is no such file.
        InputError: the file is broken or is no predictor.
    """
    if not path.exists():
        raise MissingFileError(
            f"a predictor must be a file, but {path} does not exist; make one with: "
            f"metaensemble learn-weightformer ZOO --data D --out {path}"
        )
    state, metadata = load_state(path)
    if metadata is None or metadata.get("kind") != "weightformer-predictor":
        raise InputError(
            f"--predictor must be a WeightFormer predictor, but {path} is not one; "
            f"make one with: metaensemble learn-weightformer ZOO --data D --out WF"
        )
    try:
        info = PredictorInfo.model_validate(_completed(metadata))
        frame = _taken(state, FRAME_PREFIX)
        if bool(frame) != info.frame:
            raise ValueError("the frame and the record of it disagree")
        _refuse_odd_spec(info.spec)
        _refuse_unfit(info, state)
        network = WeightFormer(info.config, info.spec)
        network.load_state_dict(state)
    except Exception as error:  # the sizes of a hostile record fail in many ways
        raise InputError(
            f"{path} must be a predictor of this version of metaensemble, but does not "
            f"fit it ({one_line(error)}); "
            "train it again with metaensemble learn-weightformer"
        ) from error
    return Predictor(network.eval(), info, frame or None)


def _refuse_odd_spec(spec: TokenSpec) -> None:
    """Raise `ValueError` unless the tokens are those of the tensors, each once."""
    left = {name: math.prod(shape) for name, shape in spec.shapes.items()}
    for layer in spec.layers:
        for part in layer.parts:
            numbers = math.prod(spec.shapes[part.tensor])
            stop = part.width * (part.first_row + layer.rows)
            if min(part.width, layer.rows) < 1 or part.first_row < 0 or stop > numbers:
                raise ValueError(f"the tokens of {part.tensor!r} lie outside of it")
            left[part.tensor] -= part.width * layer.rows
    if any(left.values()) or min(map(min, filter(None, spec.shapes.values()))) < 1:
        raise ValueError("the tokens are not all of the tensors")
    if not set(spec.ties.values()) <= set(spec.shapes):
        raise ValueError("a name is tied to none")


def _refuse_unfit(info: PredictorInfo, state: State) -> None:
    """Raise `ValueError` unless the file has all tensors of the network, before it is.

    What a record asks for takes no memory before the file is known to hold as much.
    """
    if info.config.depth > len(state):
        raise ValueError(f"it lacks tensors of {info.config.depth} blocks")
    with torch.device("meta"):
        wanted = WeightFormer(info.config, info.spec).state_dict()
    odd = [n for n in wanted if n not in state or state[n].shape != wanted[n].shape]
    odd += [name for name in state if name not in wanted]
    if odd:
        raise ValueError(f"{odd[0]!r} is missing, surplus or of another shape")
    if not all(tensor.is_floating_point() for tensor in state.values()):
        raise ValueError("its weights are no floating numbers")


def _completed(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return a record with what those of older files leave unsaid."""
    config = metadata.get("config")
    if not isinstance(config, dict):
        return metadata
    return {**metadata, "config": {"attention": "full", **config}}


def _taken(state: State, prefix: str) -> State:
    """Take the tensors whose names begin with a prefix out of a state dict."""
    names = [name for name in state if name.startswith(prefix)]
    return {name.removeprefix(prefix): state.pop(name) for name in names}
