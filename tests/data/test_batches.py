import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifar_lightning.data.batches import BatchOrder, ResumableLoader, make_loader, split_indices

LABELS = torch.arange(1000) % 10


@pytest.mark.parametrize("how", ["first", "last", "random", "stratified"])
@pytest.mark.parametrize("size", [100, 0.1, 1, 999])
def test_split_is_a_partition(how, size):
    train, val = split_indices(LABELS, how, size, seed=1)
    assert len(val) == (100 if size == 0.1 else size)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(1000))


def test_first_and_last():
    assert split_indices(LABELS, "first", 3, 0)[1].tolist() == [0, 1, 2]
    assert split_indices(LABELS, "last", 3, 0)[1].tolist() == [997, 998, 999]


def test_random_split_goes_by_its_seed():
    one, same, other = (split_indices(LABELS, "random", 100, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@given(st.lists(st.integers(0, 4), min_size=20, max_size=200), st.integers(1, 19), st.integers(0, 99))
def test_stratified_split_gives_each_class_its_share(labels, size, seed):
    labels = torch.tensor(labels)
    _, val = split_indices(labels, "stratified", size, seed)
    assert len(val) == size
    for k in range(5):
        share = (labels == k).sum() * size / len(labels)
        assert abs((labels[val] == k).sum() - share) <= 1


@pytest.mark.parametrize("size", [0, 1000, -5, 0.0, 1.5, 5000])
def test_wrong_val_size(size):
    with pytest.raises(ValueError, match=f"val_size out of range: expected 1 to 999 images .* received {size}"):
        split_indices(LABELS, "first", size, 0)


def test_wrong_val_split():
    with pytest.raises(ValueError, match="unknown val_split: expected one of first, last, random, stratified"):
        split_indices(LABELS, "middle", 10, 0)


def epoch(order, number=0):
    order.set_epoch(number)
    return [batch.tolist() for batch in order]


def test_an_epoch_takes_each_image_once_and_the_last_batch_may_be_short():
    order = BatchOrder(torch.arange(100, 203), 10, shuffle=True, seed=1)
    batches = epoch(order)
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    assert len(order) == 11
    assert sorted(sum(batches, [])) == list(range(100, 203))


def test_order_is_a_function_of_seed_and_epoch_alone():
    def fresh(seed):
        return BatchOrder(torch.arange(50), 7, True, seed)

    used = fresh(1)
    epoch(used, 0)
    assert epoch(used, 3) == epoch(fresh(1), 3)
    orders = [epoch(fresh(seed), number) for seed in (1, 2) for number in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_without_shuffling_it_is_in_order():
    assert epoch(BatchOrder(torch.arange(5), 2, False, 0)) == [[0, 1], [2, 3], [4]]


@given(n=st.integers(8, 60), batch_size=st.integers(1, 9), ranks=st.integers(1, 4), shuffle=st.booleans())
def test_ranks_share_the_images(n, batch_size, ranks, shuffle):
    orders = [BatchOrder(torch.arange(n), batch_size, shuffle, 0, ranks, rank) for rank in range(ranks)]
    parts = [epoch(order) for order in orders]
    assert [len(order) for order in orders] == [len(part) for part in parts]
    seen = sum(sum(parts, []), [])
    assert set(seen) == set(range(n))
    if shuffle:  # DDP steps together
        assert len({len(sum(part, [])) for part in parts}) == 1
    else:  # a metric counts each image once
        assert len(seen) == n


@given(stop=st.integers(0, 7))
def test_a_loader_goes_on_in_mid_epoch(stop):
    images, labels = torch.arange(50).float().view(50, 1), torch.arange(50)

    def loader():
        return make_loader(images, labels, BatchOrder(torch.arange(50), 7, True, seed=5), ResumableLoader)

    def rest(loader, number):
        loader.sampler.set_epoch(number)
        return [batch[1].tolist() for batch in loader]

    whole = loader()
    expected = rest(whole, 2)
    first = loader()
    first.sampler.set_epoch(2)
    iterator = iter(first)
    for _ in range(stop):
        next(iterator)
    second = loader()
    second.load_state_dict(first.state_dict())
    iter(second)  # Lightning makes an iterator before it makes the one that it uses
    assert rest(second, 2) == expected[stop:]
    assert rest(second, 2) == expected  # once
    assert rest(second, 3) == rest(whole, 3)


@given(at_once=st.integers(1, 80))
def test_several_batches_at_once_are_the_same_batches(at_once):
    images, labels = torch.randint(256, (500, 2), dtype=torch.uint8), torch.arange(500)
    one_by_one = make_loader(images, labels, BatchOrder(torch.arange(500), 7, True, seed=5))
    several = make_loader(images, labels, BatchOrder(torch.arange(500), 7, True, seed=5))
    several.sampler.batches_at_once = lambda: at_once
    items = list(several)
    assert len(items) == -(-72 // at_once)
    batches = itertools.chain.from_iterable(item.split() for item in items)
    for (x, y), (ours, our_labels) in zip(one_by_one, batches, strict=True):
        assert torch.equal(ours, x.float())
        assert torch.equal(our_labels, y)


def test_a_loader_leaves_the_global_generator_alone():
    loader = make_loader(torch.zeros(9, 1), torch.zeros(9), BatchOrder(torch.arange(9), 2, True, 0))
    before = torch.get_rng_state()
    assert len(list(loader)) == len(loader) == 5
    assert torch.equal(torch.get_rng_state(), before)
