"""Images moved, before a step, to where networks differ: TDiv-SDiv, ODS, ConfODS.

Where all teachers agree on an image, there is nothing in it that an ensemble knows and
one network does not. Each function moves every image a small way along a gradient,

    x' = clip(x + size sqrt(D) g / ||g||_2, 0, 1),

with one norm per image and D its number of values; where g is 0, x' = x. Gradients are
taken with respect to pixels only: no parameter receives one.

All networks are to be in eval mode: what an image is moved to must not depend on the
others of its batch.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Generator, Tensor

Pixels = Float[Tensor, "batch channels height width"]
"""Images in [0, 1]."""
Logits = Callable[[Tensor], Tensor]
"""A network as a function of `Pixels`: logits (batch, classes), differentiable."""

SIZE = 1 / 255
"""Root mean square of the moves, in units of [0, 1] pixels: a level of brightness."""
ROUNDING = 1e-5
"""Log-probabilities, of a few nats, that are nearer than this are the same."""


def tdiv_sdiv(
    pixels: Pixels,
    teachers: Sequence[Logits],
    student: Logits | None,
    random: Generator,
    size: float = SIZE,
) -> Pixels:
    """Return images where teachers differ more and the student's networks less.

    For a pair (j, k), g is the gradient of CE(sg p_tk, p_tj) - CE(sg p_sk, p_sj), with
    p the probabilities and sg the stop of gradients (Nam et al. 2022, arXiv 2206.15047,
    TDiv and SDiv at temperature 1). With one teacher the images are returned as they
    are.

    Args:
        pixels: where the images are.
        teachers: each one's logits as a function of pixels.
        student: logits (networks, batch, classes) of all networks of the student, as a
            function of pixels. There is no SDiv where it is one network, or None.
        random: draws the pair: the same one of teachers and of the student's networks,
            if there are as many.
        size: root mean square of a move.
    """
    if len(teachers) < 2:
        return pixels
    j, k = _pair(len(teachers), random)
    with torch.enable_grad():
        start = pixels.detach().requires_grad_()
        first = teachers[j](start)
        with torch.no_grad():
            second = teachers[k](pixels)
        outputs, pulls = [first], [_difference(first, second)]
        own = None if student is None else student(start)
        if own is not None and len(own) > 1:
            if len(own) != len(teachers):
                j, k = _pair(len(own), random)
            outputs.append(own[j])
            pulls.append(-_difference(own[j], own[k]))
        gradient = _gradient(outputs, pulls, start)
    return _moved(pixels, gradient, size)


def ods(
    pixels: Pixels,
    teachers: Sequence[Logits],
    random: Generator,
    size: float = SIZE,
    temperature: float = 1.0,
) -> Pixels:
    """Return images moved along a random direction of a random teacher's output.

    g is the gradient of u^T softmax(t_j(x) / T), with u uniform in [-1, 1]^K for each
    image and one teacher j for all (Tashiro et al. 2020, arXiv 2003.06878; Nam et al.
    2021, "Diversity Matters").

    Args:
        pixels: where the images are.
        teachers: each one's logits as a function of pixels.
        random: draws j, then u.
        size: root mean square of a move.
        temperature: T.
    """
    gradient, _ = _output_direction(pixels, teachers, random, temperature)
    return _moved(pixels, gradient, size)


def confods(
    pixels: Pixels,
    teachers: Sequence[Logits],
    random: Generator,
    size: float = SIZE,
    temperature: float = 1.0,
) -> Pixels:
    """Return images moved as by `ods`, the less, the less sure that teacher is.

    Each move is multiplied by the teacher's largest probability for the image (Nam et
    al. 2021). Arguments are those of `ods`.
    """
    gradient, sureness = _output_direction(pixels, teachers, random, temperature)
    return _moved(pixels, gradient, size * sureness[:, None, None, None])


def _pair(count: int, random: Generator) -> tuple[int, int]:
    """Return two different numbers below `count`."""
    j, k = torch.randperm(count, generator=random)[:2].tolist()
    return j, k


def _difference(first: Tensor, second: Tensor) -> Tensor:
    """Return the gradient of CE(sg p_second, p_first) by the logits of the first.

    It is p_first - p_second. Rows of equal predictions are exactly 0, where automatic
    differentiation leaves rounding errors, which a unit step would blow up.
    """
    first, second = first.detach().float(), second.detach().float()
    one, other = first.log_softmax(-1), second.log_softmax(-1)
    same = torch.isclose(one, other, rtol=ROUNDING, atol=ROUNDING).all(-1)
    pull = _zero_sum(one.exp() - other.exp(), one)
    return pull.masked_fill(same[:, None], 0)


def _output_direction(
    pixels: Pixels, teachers: Sequence[Logits], random: Generator, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the gradient of ODS and the teacher's largest probabilities, (batch,)."""
    j = int(torch.randint(len(teachers), (1,), generator=random))
    with torch.enable_grad():
        start = pixels.detach().requires_grad_()
        logits = teachers[j](start)
        u = 2 * torch.rand(logits.shape, generator=random) - 1
        u = u.to(logits.device)
        p = (logits.detach().float() / temperature).softmax(-1)
        pull = _zero_sum(p * (u - (p * u).sum(-1, keepdim=True)), p)
        gradient = _gradient([logits], [pull], start)
    return gradient, logits.detach().float().softmax(-1).amax(-1)


def _zero_sum(pull: Tensor, scores: Tensor) -> Tensor:
    """Return gradients by logits that add up to 0, exactly where a class is sure.

    1 - p loses all digits where p is nearly 1; the other classes' values have theirs.
    """
    top = scores.argmax(-1, keepdim=True)
    pull = pull.scatter(-1, top, 0.0)
    return pull.scatter(-1, top, -pull.sum(-1, keepdim=True))


def _gradient(outputs: list[Tensor], pulls: list[Tensor], start: Tensor) -> Tensor:
    """Return the gradient by pixels for gradients by logits, up to a factor per image.

    The factor keeps sure networks' gradients, of 1e-20 and less, from vanishing.
    """
    largest = torch.stack([pull.abs().amax(-1) for pull in pulls]).amax(0)
    scale = torch.where(largest > 0, 1 / largest.clamp_min(1e-37), 1.0)[:, None]
    scaled = [
        (pull * scale).to(output.dtype)
        for output, pull in zip(outputs, pulls, strict=True)
    ]
    return torch.autograd.grad(outputs, start, scaled)[0]


def _moved(pixels: Pixels, gradient: Tensor, size: float | Tensor) -> Pixels:
    rows = gradient.flatten(1)
    largest = rows.abs().amax(1, keepdim=True)
    known = (largest > 0) & largest.isfinite()  # nowhere to go, else
    rows = torch.where(known, rows / largest, 0.0)  # so that squares do not underflow
    norm = rows.norm(dim=1, keepdim=True)
    unit = torch.where(known, rows / norm, 0.0).view_as(gradient)
    radius = size * rows.shape[1] ** 0.5
    return (pixels.detach() + radius * unit).clamp(0, 1)
