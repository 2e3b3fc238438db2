import torch

from metaensemble.core.seeds import derive_seed, generator, permutation, seeded


def test_a_seed_depends_on_every_part_and_on_their_order():
    seeds = [
        derive_seed(0),
        derive_seed(1),
        derive_seed("0"),
        derive_seed(0, 1),
        derive_seed(1, 0),
        derive_seed(0, "draw"),
        derive_seed(0, "draw", 0),
    ]
    assert len(set(seeds)) == len(seeds)


def test_a_seed_is_the_same_on_every_machine():
    # By hand: the first 8 bytes of SHA-256 of "(0, 'draw', 7)", little endian, halved.
    assert derive_seed(0, "draw", 7) == 2_922_162_389_415_478_886
    assert all(0 <= derive_seed(i) < 2**63 for i in range(100))


def test_permutations_are_whole_and_fixed_by_their_parts():
    order = permutation(50, 3, "epoch", 1)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(50))
    assert torch.equal(order, permutation(50, 3, "epoch", 1))
    assert not torch.equal(order, permutation(50, 3, "epoch", 2))


def test_generators_are_independent_of_the_global_one():
    torch.manual_seed(0)
    first = torch.rand(3, generator=generator(1))
    torch.manual_seed(1)
    assert torch.equal(first, torch.rand(3, generator=generator(1)))


def test_a_seeded_block_leaves_the_global_generator_as_it_was():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(5, "init"):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(5, "init"):
        assert torch.equal(torch.rand(2), inside)
    with seeded(6, "init"):
        assert not torch.equal(torch.rand(2), inside)


def test_a_seeded_block_restores_after_an_error_too():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    try:
        with seeded(5):
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(torch.rand(2), expected)
