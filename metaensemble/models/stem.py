"""The stem that networks of one kind can share: their first layer and its norm."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from metaensemble.models.modes import run_on_zeros
from metaensemble.models.shapes import InputShape

LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def stem(network: nn.Module, input_shape: InputShape) -> tuple[str, ...]:
    """Return the names of the first layer and, if there is one, of the norm it feeds.

    Without a convolution or linear layer, there are none.

    Args:
        network: run once on zeros; stays as it is.
        input_shape: channels, height, width.
    """
    seen: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, (*LAYERS, *NORMS)):

            def after(m: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
                seen.append((name, m, args[0], out))

            handles.append(module.register_forward_hook(after))
    try:
        run_on_zeros(network, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    for i, (name, module, _, out) in enumerate(seen):
        if isinstance(module, LAYERS):
            fed = [n for n, m, x, _ in seen[i + 1 :] if x is out and type(m) in NORMS]
            return (name, *fed[:1])
    return ()


def share(networks: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Give all networks the first one's modules of these names, in place."""
    for network in networks[1:]:
        for name in names:
            parent, _, last = name.rpartition(".")
            module = networks[0].get_submodule(name)
            setattr(network.get_submodule(parent), last, module)


@contextmanager
def once(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Run, in the block, each module only once per input; later calls get copies.

    So networks that share a stem compute it once, and its running statistics see each
    batch once.
    """
    copies: _Copies = {}
    for module in modules:
        _remember(module, copies)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


_Place = tuple[object, ...]
"""What tells whether two tensors are the same values in memory."""
_Copies = dict[_Place, tuple[_Place, Tensor]]
"""Of what is each tensor a copy; tensors are kept, lest others get their memory."""


def _place(value: Tensor) -> _Place:
    return value.data_ptr(), value.shape, value.stride(), value._version


def _remember(module: nn.Module, copies: _Copies) -> None:
    run = module.forward
    known: dict[_Place, Tensor] = {}

    def forward(value: Tensor) -> Tensor:
        place, _ = copies.setdefault(_place(value), (_place(value), value))
        if place not in known:
            known[place] = run(value)
        out = known[place].clone()  # what follows may work in place
        copies[_place(out)] = _place(known[place]), out
        return out

    module.forward = forward
