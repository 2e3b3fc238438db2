"""Whether a file's tensors are those of a network."""

from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.core.states import State


def load_strictly(
    network: nn.Module, state: State, source: str, architecture: str
) -> None:
    """Load `state` into `network`; every name and shape must fit.

    Raises:
        InputError: the first tensor that does not fit is named.
    """
    refuse_unfit(network.state_dict(), state, source, architecture)
    network.load_state_dict(state, strict=False)


def prefix_of(wanted: State, state: State) -> str:
    """Return the one word before all names of a state that are else those wanted.

    Empty where there is none; ``model.`` in checkpoints of a Lightning module.
    """
    prefix = next(iter(state)).partition(".")[0] + "."
    known = all(
        n.startswith(prefix) and n.removeprefix(prefix) in wanted for n in state
    )
    return prefix if known else ""


def without_prefix(state: State, prefix: str) -> State:
    """Return a state whose names lack the prefix that all have."""
    return {name.removeprefix(prefix): t for name, t in state.items()}


def refuse_unfit(wanted: State, state: State, source: str, architecture: str) -> None:
    """Refuse tensors that are not those wanted, by names, shapes and kinds.

    A count of batches may be missing, as in files of old versions of torch.

    Args:
        wanted: tensors with the shapes of the network's; values do not count.
        state: those of the file.
        source: whose they are, for messages.
        architecture: of the network, for messages.

    Raises:
        InputError: the first tensor that does not fit is named.
    """
    for name, like in wanted.items():
        if name not in state:
            if name.endswith("num_batches_tracked"):
                continue
            problem = f"lacks {name!r}"
        elif state[name].shape != like.shape:
            got, want = tuple(state[name].shape), tuple(like.shape)
            problem = f"has {name!r} of shape {got} where it needs {want}"
        elif like.is_floating_point() and not state[name].is_floating_point():
            got, want = state[name].dtype, like.dtype
            problem = f"has {name!r} of type {got} where it needs {want}"
        else:
            continue
        raise InputError(
            f"the tensors of {source} must be those of {architecture}, but it "
            f"{problem}; check --architecture, the classes and the input size"
        )
    surplus = [name for name in state if name not in wanted]
    if surplus:
        raise InputError(
            f"the tensors of {source} must be those of {architecture}, but it also "
            f"has {surplus[0]!r}; check --architecture"
        )
