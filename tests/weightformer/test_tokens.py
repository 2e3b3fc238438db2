"""Weights become tokens and come back, bit for bit, whatever the network."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metaensemble.core.errors import InputError
from metaensemble.core.states import State, hash_state
from metaensemble.models import build
from metaensemble.weightformer import derive_token_spec, read_tokens, write_tokens

SHAPE = (1, 8, 8)
NETWORKS = (
    "mlp,width=8",
    "mlp,batchnorm=true,width=8",
    "mlp,depth=0",
    "convnet,width=4",
    "vgg11_bn",
    "resnet20",
    "wrn16_1",
    "vit_small_32x32,depth=2,dim=12,mlp_dim=8",
    "separable",
    "lone",
    "tied",
    "attentive",
)


@pytest.mark.parametrize("name", NETWORKS)
def test_detokenise_inverts_tokenise_bit_for_bit(
    network_of: Callable[..., nn.Module], name: str
):
    network = network_of(name)
    spec = derive_token_spec(network, SHAPE)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    tokens = [read_tokens(layer, parameters) for layer in spec.layers]
    again = write_tokens(spec, tokens)
    assert again.keys() == parameters.keys()
    assert hash_state(again) == hash_state(parameters)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "vgg11_bn"])
def test_every_number_is_in_exactly_one_token(
    network_of: Callable[..., nn.Module], name: str
):
    network = network_of(name)
    spec = derive_token_spec(network, SHAPE)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert sum(layer.rows * layer.width for layer in spec.layers) == count
    # Numbers 0, 1, 2, ... written over the parameters are all met again, once each.
    start, numbered = 0, {}
    for key, parameter in network.named_parameters():
        stop = start + parameter.numel()
        numbered[key] = torch.arange(start, stop).double().view(parameter.shape)
        start = stop
    met = torch.cat([tokens_in_float64(layer, numbered) for layer in spec.layers])
    assert torch.equal(met.sort().values, torch.arange(count).double())


def tokens_in_float64(layer, state: dict[str, Tensor]) -> Tensor:
    rows = [
        state[part.tensor].reshape(-1, part.width)[part.first_row :][: layer.rows]
        for part in layer.parts
    ]
    return torch.cat([block.flatten() for block in rows])


@pytest.mark.parametrize("name", ["vgg11_bn", "separable", "lone", "attentive"])
def test_deriving_leaves_the_network_as_it_was(
    network_of: Callable[..., nn.Module], name: str
):
    network = network_of(name).train()
    frozen = next(m for m in network.modules() if not list(m.children()))
    frozen.eval()
    before = hash_state(network.state_dict())
    modes = [module.training for module in network.modules()]
    derive_token_spec(network, SHAPE)
    assert hash_state(network.state_dict()) == before
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())


def test_a_convolution_has_one_token_per_output_channel():
    spec = derive_token_spec(build("convnet,width=4", 3, SHAPE), SHAPE)
    first, second, *_, head = spec.layers
    assert (first.name, first.kind, first.rows) == ("conv1", "conv", 4)
    assert [part.tensor for part in first.parts] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
    ]
    assert first.width == 3 * 3 * 1 + 2  # k*k*n_in, scale and shift of the norm
    assert (second.rows, second.width) == (8, 3 * 3 * 4 + 2)
    assert (head.name, head.kind, head.rows) == ("fc", "linear", 3)
    assert head.width == 16 + 1  # n_in and the bias


def test_a_convolution_with_bias_and_norm_has_all_of_them_in_its_tokens(
    network_of: Callable[..., nn.Module],
):
    spec = derive_token_spec(network_of("vgg11_bn"), SHAPE)
    widths = [(layer.rows, layer.width) for layer in spec.layers]
    channels = [1, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = [
        (after, 9 * before + 1 + 2) for before, after in itertools.pairwise(channels)
    ]
    assert widths == [*convolutions, (3, 512 + 1)]


def test_a_depthwise_convolution_has_narrow_tokens(
    network_of: Callable[..., nn.Module],
):
    spec = derive_token_spec(network_of("separable"), SHAPE)
    found = {layer.name: (layer.kind, layer.rows, layer.width) for layer in spec.layers}
    assert found == {
        "stem": ("conv", 4, 9),
        "depthwise": ("conv", 4, 9 + 2),
        "pointwise": ("conv", 6, 4 + 1 + 2),  # a group norm follows, too
        "head": ("linear", 3, 6 + 1),
    }


def test_attention_has_tokens_for_queries_keys_values_and_output(
    network_of: Callable[..., nn.Module],
):
    network = network_of("vit_small_32x32,depth=1,dim=12,mlp_dim=8")
    spec = derive_token_spec(network, SHAPE)
    found = [(layer.name, layer.kind, layer.rows, layer.width) for layer in spec.layers]
    block = "encoder.layers.encoder_layer_0"
    assert found == [
        ("class_token", "table", 1, 12),
        ("conv_proj", "conv", 12, 4 * 4 * 1 + 1),
        ("encoder.pos_embedding", "table", 1 + 4, 12),
        (f"{block}.ln_1", "norm", 12, 2),
        (f"{block}.self_attention.q", "attention", 12, 12 + 1),
        (f"{block}.self_attention.k", "attention", 12, 12 + 1),
        (f"{block}.self_attention.v", "attention", 12, 12 + 1),
        (f"{block}.self_attention.o", "attention", 12, 12 + 1),
        (f"{block}.ln_2", "norm", 12, 2),
        (f"{block}.mlp.0", "linear", 8, 12 + 1),
        (f"{block}.mlp.3", "linear", 12, 8 + 1),
        ("encoder.ln", "norm", 12, 2),
        ("heads.head", "linear", 3, 12 + 1),
    ]


def test_attention_rows_are_cut_from_the_joint_projection():
    attention = nn.MultiheadAttention(4, 2)
    network = nn.Sequential()
    network.add_module("attention", Wrapped(attention))
    spec = derive_token_spec(network, SHAPE)
    state = dict(network.named_parameters())
    keys = read_tokens(spec.layers[1], state)
    assert spec.layers[1].name == "attention.inner.k"
    assert torch.equal(keys[:, :4], attention.in_proj_weight[4:8])
    assert torch.equal(keys[:, 4], attention.in_proj_bias[4:8])


class Wrapped(nn.Module):
    def __init__(self, inner: nn.MultiheadAttention):
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        rows = images[:, 0, :, :4]
        return self.inner(rows, rows, rows)[0].mean(1)


def test_lone_parameters_become_rows_of_tables(network_of: Callable[..., nn.Module]):
    spec = derive_token_spec(network_of("lone"), SHAPE)
    found = [(layer.name, layer.kind, layer.rows, layer.width) for layer in spec.layers]
    assert found == [
        ("temperature", "table", 1, 1),
        ("offset", "table", 64, 1),
        ("table", "table", 2 * 3, 5),  # a module's own parameters precede its layers'
        ("norm", "norm", 64, 2),
        ("hidden", "linear", 5, 64 + 1 + 2),  # the norm that follows it, included
        ("prelu.weight", "table", 5, 1),
        ("embedding.weight", "table", 2, 5),
        ("transposed.weight", "table", 5 * 4, 2),
        ("transposed.bias", "table", 4, 1),
        ("head", "linear", 3, 5),
        ("unused", "linear", 2, 3),  # never runs, but is a parameter like any other
    ]


def test_layers_come_in_order_of_execution_not_of_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4, 3)
            self.first = nn.Linear(64, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.first(images.flatten(1)))

    spec = derive_token_spec(Backwards(), SHAPE)
    assert [layer.name for layer in spec.layers] == ["first", "last"]


def test_equal_layers_share_an_embedder():
    spec = derive_token_spec(build("resnet20", 3, SHAPE), SHAPE)
    assert len(spec.layers) == 20
    assert (
        len({layer.key for layer in spec.layers}) == 5
    )  # 1, 16, 32, 64 channels in; head


def test_the_spec_survives_json(network_of: Callable[..., nn.Module]):
    spec = derive_token_spec(network_of("tied"), SHAPE)
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


def test_half_precision_survives(teachers_of: Callable[..., list[State]]):
    spec = derive_token_spec(build("mlp,width=4", 3, SHAPE), SHAPE)
    (state,) = teachers_of("mlp,width=4", 1)
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    written = write_tokens(spec, [read_tokens(layer, half) for layer in spec.layers])
    assert hash_state({k: v.bfloat16() for k, v in written.items()}) == hash_state(half)


def test_gradients_pass_through_write_tokens():
    spec = derive_token_spec(build("mlp,width=4", 3, SHAPE), SHAPE)
    tokens = [
        torch.zeros(layer.rows, layer.width, requires_grad=True)
        for layer in spec.layers
    ]
    sum(t.sum() for t in write_tokens(spec, tokens).values()).backward()  # type: ignore
    for token in tokens:
        assert token.grad is not None
        assert token.grad.eq(1).all()


def test_a_network_without_parameters_is_refused():
    with pytest.raises(InputError, match="must have parameters to be predicted"):
        derive_token_spec(nn.Flatten(), SHAPE)
