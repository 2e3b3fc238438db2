import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaensemble.methods.perturbation import SIZE, confods, ods, tdiv_sdiv

RADIUS = 48**0.5 / 255
"""Of a whole step for images of 3 x 4 x 4 values."""


def network(seed: int, scale: float = 4.0) -> nn.Module:
    """A small differentiable classifier of 3 x 4 x 4 images, 5 classes."""
    random = torch.Generator().manual_seed(seed)
    made = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 5))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter[:] = 0.5 * torch.randn(parameter.shape, generator=random)
        made[3].weight *= scale  # pyright: ignore
    return made.eval()


class Several(nn.Module):
    """A student of several networks."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.stack([network(pixels) for network in self.networks])


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths(moved: Tensor, pixels: Tensor) -> Tensor:
    return (moved - pixels).flatten(1).norm(dim=1)


def cross_entropy(first: Tensor, second: Tensor) -> Tensor:
    """CE(sg p_second, p_first) of each image, by its definition."""
    return -(second.detach().softmax(-1) * first.log_softmax(-1)).sum(-1)


@pytest.fixture
def pixels() -> Tensor:
    """Away from 0 and 1, so that nothing is clipped."""
    return 0.2 + 0.6 * torch.rand(6, 3, 4, 4, generator=draws(3))


@pytest.fixture
def teachers() -> list[nn.Module]:
    return [network(seed) for seed in (1, 2, 3)]


@pytest.fixture
def student() -> Several:
    return Several(*(network(seed) for seed in (4, 5, 6)))


MOVES = {
    "tdiv_sdiv": lambda x, t, s, g: tdiv_sdiv(x, t, s, g),
    "ods": lambda x, t, s, g: ods(x, t, g),
}


@pytest.mark.parametrize("kind", MOVES)
def test_every_image_moves_by_the_radius(kind, pixels, teachers, student):
    moved = MOVES[kind](pixels, teachers, student, draws())
    torch.testing.assert_close(lengths(moved, pixels), torch.full((6,), RADIUS))


def test_the_radius_is_that_of_the_paper():
    assert 3072**0.5 * SIZE == pytest.approx(0.2174, abs=1e-4)


@pytest.mark.parametrize("kind", MOVES)
def test_images_stay_images(kind, teachers, student):
    edge = (torch.rand(6, 3, 4, 4, generator=draws(1)) > 0.5).float()
    moved = MOVES[kind](edge, teachers, student, draws())
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (lengths(moved, edge) <= RADIUS + 1e-6).all()
    assert (lengths(moved, edge) < 0.99 * RADIUS).any()  # something was clipped


@pytest.mark.parametrize("kind", MOVES)
def test_no_parameter_receives_a_gradient(kind, pixels, teachers, student):
    before = [p.clone() for m in (*teachers, student) for p in m.parameters()]
    moved = MOVES[kind](pixels, teachers, student, draws())
    after = [p for m in (*teachers, student) for p in m.parameters()]
    assert all(p.grad is None for p in after)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert not moved.requires_grad
    assert pixels.grad is None


def test_the_direction_is_the_gradient_by_its_definition(pixels, teachers, student):
    j, k = torch.randperm(3, generator=draws(7))[:2].tolist()
    x = pixels.clone().requires_grad_()
    own = student(x)
    rise = cross_entropy(teachers[j](x), teachers[k](x)) - cross_entropy(own[j], own[k])
    (g,) = torch.autograd.grad(rise.mean(), x)
    unit = g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    moved = tdiv_sdiv(pixels, teachers, student, draws(7))
    torch.testing.assert_close(moved, pixels + RADIUS * unit, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_small_step_raises_what_it_is_to_raise(seed, pixels, teachers, student):
    j, k = torch.randperm(3, generator=draws(seed))[:2].tolist()

    def value(x: Tensor) -> Tensor:
        # what p_k says is held, as in the gradient
        own, held = student(x), student(pixels)
        return cross_entropy(teachers[j](x), teachers[k](pixels)) - cross_entropy(
            own[j], held[k]
        )

    moved = tdiv_sdiv(pixels, teachers, student, draws(seed), size=1e-4)
    assert not torch.equal(moved, pixels)
    assert (value(moved) > value(pixels)).all()


def test_each_part_acts_alone(pixels, teachers, student):
    # members that coincide leave TDiv, teachers that coincide leave SDiv
    same = Several(*[network(4)] * 3)
    only_teachers = tdiv_sdiv(pixels, teachers, None, draws())
    with_same = tdiv_sdiv(pixels, teachers, same, draws())
    torch.testing.assert_close(with_same, only_teachers, atol=1e-7, rtol=0)
    j, k = torch.randperm(3, generator=draws())[:2].tolist()
    x = pixels.clone().requires_grad_()
    own = student(x)
    (g,) = torch.autograd.grad(cross_entropy(own[j], own[k]).sum(), x)
    unit = g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    only_student = tdiv_sdiv(pixels, [network(1)] * 3, student, draws())
    torch.testing.assert_close(
        only_student, pixels - RADIUS * unit, atol=1e-6, rtol=1e-4
    )


def test_nothing_to_tell_apart_leaves_the_images(pixels, teachers, student):
    same = Several(*[network(4)] * 3)
    twins = [network(1), network(1), network(1)]
    assert torch.equal(tdiv_sdiv(pixels, twins, same, draws()), pixels)
    assert torch.equal(tdiv_sdiv(pixels, twins, None, draws()), pixels)
    assert torch.equal(tdiv_sdiv(pixels, teachers[:1], student, draws()), pixels)


def test_rounding_is_no_direction(pixels):
    class Nearly(nn.Module):
        def __init__(self, made: nn.Module) -> None:
            super().__init__()
            self.made = made

        def forward(self, x: Tensor) -> Tensor:
            return self.made(x) * (1 + 2e-7)

    twins = [network(1), Nearly(network(1))]
    assert torch.equal(tdiv_sdiv(pixels, twins, None, draws()), pixels)


def test_sure_teachers_have_a_direction_still(pixels):
    # p is 1 in single precision; the gradient by definition, in double, is the judge
    sure = [network(seed, scale=30.0) for seed in (1, 2)]
    sure[1][3].bias.data = sure[0][3].bias.data.clone()  # pyright: ignore
    sure[1][1] = sure[0][1]  # pyright: ignore
    sure[1][3].weight.data = 1.1 * sure[0][3].weight.data  # pyright: ignore
    assert (sure[0](pixels).softmax(-1).amax(-1) == 1).any()
    moved = tdiv_sdiv(pixels, sure, None, draws())
    torch.testing.assert_close(lengths(moved, pixels), torch.full((6,), RADIUS))
    j, k = torch.randperm(2, generator=draws())[:2].tolist()
    x = pixels.double().requires_grad_()
    exact = [teacher.double() for teacher in sure]
    (g,) = torch.autograd.grad(cross_entropy(exact[j](x), exact[k](x)).sum(), x)
    unit = g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(
        moved.double(), pixels.double() + RADIUS * unit, atol=1e-5, rtol=1e-3
    )


def test_a_network_without_slope_or_with_a_broken_one_moves_nothing(pixels):
    def flat(x: Tensor) -> Tensor:
        return torch.stack([0 * x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3)) + 1], 1)

    def broken(x: Tensor) -> Tensor:
        # the slope of a root at 0 is infinite, and 0 times it is no number
        value = (x - x.detach()).sum((1, 2, 3)).abs().sqrt()
        return torch.stack([value, 1 + 0 * value], 1)

    def other(x: Tensor) -> Tensor:
        return flat(x) * torch.tensor([1.0, 3.0])

    for teacher in (flat, broken):
        assert torch.equal(ods(pixels, [teacher], draws()), pixels)
        moved = tdiv_sdiv(pixels, [teacher, other], None, draws())
        assert torch.equal(moved, pixels)


def test_a_student_of_one_network_has_no_part(pixels, teachers):
    one = Several(network(4))
    alone = tdiv_sdiv(pixels, teachers, one, draws())
    assert torch.equal(alone, tdiv_sdiv(pixels, teachers, None, draws()))


def test_another_number_of_networks_draws_a_pair_of_its_own(pixels, teachers):
    student = Several(network(4), network(5))
    random = draws(7)
    j, k = torch.randperm(3, generator=random)[:2].tolist()
    a, b = torch.randperm(2, generator=random)[:2].tolist()
    x = pixels.clone().requires_grad_()
    own = student(x)
    rise = cross_entropy(teachers[j](x), teachers[k](x)) - cross_entropy(own[a], own[b])
    (g,) = torch.autograd.grad(rise.sum(), x)
    unit = g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    moved = tdiv_sdiv(pixels, teachers, student, draws(7))
    torch.testing.assert_close(moved, pixels + RADIUS * unit, atol=1e-6, rtol=1e-4)


def test_draws_decide_the_pair(pixels, teachers, student):
    def move(seed: int) -> Tensor:
        return tdiv_sdiv(pixels, teachers, student, draws(seed))

    assert torch.equal(move(0), move(0))
    kinds = {tuple(move(seed).flatten().tolist()) for seed in range(40)}
    assert len(kinds) == 6  # ordered pairs of three


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_ods_climbs_a_random_direction_of_the_output(pixels, teachers, temperature):
    random = draws(5)
    j = int(torch.randint(3, (1,), generator=random))
    u = 2 * torch.rand(6, 5, generator=random) - 1
    x = pixels.clone().requires_grad_()
    out = (u * (teachers[j](x) / temperature).softmax(-1)).sum()
    (g,) = torch.autograd.grad(out, x)
    unit = g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    moved = ods(pixels, teachers, draws(5), temperature=temperature)
    torch.testing.assert_close(moved, pixels + RADIUS * unit, atol=1e-6, rtol=1e-4)


def test_confods_goes_as_far_as_its_teacher_is_sure(pixels, teachers):
    j = int(torch.randint(3, (1,), generator=draws(5)))
    sureness = teachers[j](pixels).softmax(-1).amax(-1)
    whole, part = ods(pixels, teachers, draws(5)), confods(pixels, teachers, draws(5))
    torch.testing.assert_close(lengths(part, pixels), RADIUS * sureness)
    torch.testing.assert_close(
        part - pixels, sureness.view(-1, 1, 1, 1) * (whole - pixels)
    )


def test_one_teacher_is_enough_for_ods(pixels):
    moved = ods(pixels, [network(1)], draws())
    torch.testing.assert_close(lengths(moved, pixels), torch.full((6,), RADIUS))


def test_gradients_are_found_where_none_are_kept(pixels, teachers, student):
    expected = tdiv_sdiv(pixels, teachers, student, draws())
    with torch.no_grad():
        assert torch.equal(tdiv_sdiv(pixels, teachers, student, draws()), expected)


def test_an_image_moves_as_it_would_alone(pixels, teachers, student):
    together = tdiv_sdiv(pixels, teachers, student, draws())
    alone = tdiv_sdiv(pixels[2:3], teachers, student, draws())
    torch.testing.assert_close(together[2:3], alone)


def test_the_yardstick_of_these_tests_is_cross_entropy():
    first, second = torch.randn(2, 4, 5, generator=draws())
    expected = F.cross_entropy(first, second.softmax(-1), reduction="none")
    torch.testing.assert_close(cross_entropy(first, second), expected)
