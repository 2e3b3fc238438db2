import pytest
import torch
from torch import Tensor

from metaensemble.core.errors import InputError
from metaensemble.data import load_data
from metaensemble.data.multiview import BOTH, GREY, UNIT, Drawn, MultiView

SMALL = MultiView(train=300, test=200, mu=0.3)


def coefficients(world: MultiView, drawn: Drawn) -> Tensor:
    """The largest projection on each feature over the patches: (images, features)."""
    patches = (drawn.images[:, 0].float() - GREY) / UNIT  # (images, height, patches)
    return (world.features @ patches).amax(2)


def test_features_are_orthogonal_signs_also_as_bytes():
    world = MultiView()
    features = world.features
    assert features.shape == (20, 64)
    torch.testing.assert_close(features @ features.T, torch.eye(20))
    assert features.abs().unique().numel() == 1
    assert features.sum(1).abs().max() == 0
    bytes_ = (UNIT * features).round() / UNIT
    products = bytes_ @ bytes_.T
    off = products - torch.diag(products.diagonal())
    assert off.abs().max() < 1e-6
    torch.testing.assert_close(products.diagonal(), torch.ones(20), rtol=0.02, atol=0)


def test_rounding_to_bytes_loses_less_than_the_noise():
    clean = MultiView(noise=0.0, clutter=0.0, faint=0.0, train=50)
    seen = coefficients(clean, clean.draw("train")).sort(1, descending=True).values
    # multi-view images: two strong and four weak features, nothing else
    assert (seen[:, 1] > 0.98).sum() >= 45
    assert seen[:, 6:].abs().max() < 0.02
    assert 1 / UNIT < MultiView().noise / 10


def test_single_view_images_show_one_feature_of_their_class():
    drawn = SMALL.draw("train")
    seen = coefficients(SMALL, drawn)
    own = torch.stack([seen[i, 2 * y : 2 * y + 2] for i, y in enumerate(drawn.labels)])
    single = drawn.views != BOTH
    strong = own > 0.7  # noise of 0.1 on 1 to 1.5
    assert strong[~single].all()
    assert (strong[single].sum(1) == 1).all()
    assert torch.equal(strong[single].long().argmax(1), drawn.views[single])
    assert set(drawn.views.tolist()) == {BOTH, 0, 1}


def test_every_image_shows_so_many_weak_features_of_others():
    clean = MultiView(noise=0.0, clutter=0.0, weak=3, train=100)
    drawn = clean.draw("train")
    seen = coefficients(clean, drawn)
    for label in (0, 1):
        seen[torch.arange(100), 2 * drawn.labels + label] = 0
    assert ((seen > 0.18) & (seen < 0.42)).sum(1).tolist() == [3] * 100


@pytest.mark.parametrize("mu", [0.0, 0.05, 0.3, 1.0])
def test_the_share_of_single_views_is_mu(mu: float):
    for split, count in (("train", 200), ("test", 60)):
        drawn = MultiView(mu=mu, train=200, test=60).draw(split)
        assert (drawn.views != BOTH).sum() == round(mu * count)
        assert drawn.labels.bincount().tolist() == [count // 10] * 10


def test_the_same_seed_gives_the_same_bytes_and_splits_differ():
    one, same = SMALL.draw("train"), SMALL.draw("train")
    assert torch.equal(one.images, same.images)
    assert torch.equal(one.labels, same.labels)
    assert torch.equal(one.views, same.views)
    other = SMALL.model_copy(update={"seed": 1}).draw("train")
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.images[:200], SMALL.draw("test").images)


def test_noise_is_gaussian_of_that_deviation():
    world = MultiView(weak=0, clutter=0.0, noise=0.1, train=200)
    patches = (world.draw("train").images[:, 0].float() - GREY) / UNIT
    free = torch.linalg.qr(torch.cat([world.features, torch.randn(44, 64)]).T).Q[:, 20:]
    assert (free.T @ patches).std().item() == pytest.approx(0.1, rel=0.02)


def test_the_word_loads_the_default_world():
    data = load_data("multiview")
    assert (data.input_shape, data.num_classes) == ((1, 64, 8), 10)
    assert (len(data.train), len(data.validation), len(data.test)) == (900, 100, 4000)
    assert data.augmentation.is_identity
    assert data.unlabelled is None
    # grey is the mean, up to the clutter: normalisation scales, and moves nothing
    assert data.normalization.mean[0] * 255 == pytest.approx(GREY, abs=0.5)
    images = data.test.batch(torch.arange(4000))
    assert torch.equal(images, MultiView().draw("test").images)


def test_fields_go_with_the_word():
    data = load_data("multiview,classes=3,height=8,train=40,test=9,weak=1,patches=4")
    assert (data.input_shape, data.num_classes) == ((1, 8, 4), 3)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("multiview,mu=1.2", "'mu' of multiview should be less than .* is '1.2'"),
        ("multiview,mu=-0.1", "'mu' of multiview should be greater .* is '-0.1'"),
        ("multiview,mu=nan", "'mu' of multiview should be less than .* is 'nan'"),
        ("multiview,mu=a", "'mu' of multiview should be a valid number"),
        ("multiview,nu=0.1", "must be key=value, .* has 'nu=0.1'"),
        ("multiview,mu", "must be key=value, each once, .* has 'mu'"),
        ("multiview,mu=0.1,mu=0.2", "each once, .* has 'mu=0.2'"),
        ("multiview,height=48", "a power of two above .* = 20, but is 48; choose 32"),
        ("multiview,height=16", "a power of two above .* = 20, but is 16; choose 32"),
        ("multiview,weak=19,patches=21", "at most the 18 features .* weak is 19"),
        ("multiview,weak=7", "a patch for each of the 9 features .* patches is 8"),
        ("multiview,classes=1", "'classes' of multiview should be greater"),
    ],
)
def test_odd_worlds_are_refused(text: str, message: str):
    with pytest.raises(InputError, match=message):
        load_data(text)


def test_the_world_is_not_streamed_or_resized():
    with pytest.raises(InputError, match="only an image folder can be streamed"):
        load_data("multiview", stream=True)
    with pytest.raises(InputError, match="multiview has images of 64 x 8"):
        load_data("multiview", image_size=8)
