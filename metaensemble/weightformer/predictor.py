"""A trained generator in a file, with what it needs to be used by a stranger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.states import State, load_state, save_state
from metaensemble.data import Normalization
from metaensemble.weightformer.network import WeightFormer, WeightFormerConfig
from metaensemble.weightformer.tokens import TokenSpec


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


@dataclass(frozen=True)
class Predictor:
    """A generator ready to predict."""

    network: WeightFormer
    info: PredictorInfo

    @torch.no_grad()
    def predict(self, states: Sequence[Mapping[str, Tensor]]) -> State:
        """Return the student's parameters for these teachers, in one forward pass.

        Buffers are the mean of the teachers': running statistics must be re-estimated
        on images before the student is used (`models.reestimate_batchnorm`).

        Raises:
            InputError: the teachers' tensors are not those of the architecture.
        """
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
        parameters, _ = self.network.eval()(states)
        return complete_state(parameters, states)


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
    metadata = predictor.info.model_dump(mode="json")
    save_state(path, predictor.network.state_dict(), metadata)


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
        info = PredictorInfo.model_validate(metadata)
        network = WeightFormer(info.config, info.spec)
        network.load_state_dict(state)
    except (ValidationError, RuntimeError) as error:
        raise InputError(
            f"{path} must be a predictor of this version of metaensemble, but does not "
            "fit it; train it again with metaensemble learn-weightformer"
        ) from error
    return Predictor(network.eval(), info)
