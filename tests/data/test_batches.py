import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, random_split

from cifar_lightning.data.batches import (
    Batches,
    BatchOrder,
    InMemoryImages,
    JoinedOrder,
    ResumableLoader,
    as_floats,
    make_loader,
    split_indices,
)

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
    with pytest.raises(ValueError, match=f"val_size must be 1 to 999 images .* got {size}"):
        split_indices(LABELS, "first", size, 0)


def test_wrong_val_split():
    with pytest.raises(ValueError, match="unknown val_split: expected one of first, last, random, stratified"):
        split_indices(LABELS, "middle", 10, 0)


def epoch(order, number=0):
    order.set_epoch(number)
    return [batch.tolist() for batch in order]


def test_an_epoch_takes_each_image_once_and_the_last_batch_may_be_short():
    order = BatchOrder(range(103), 10, shuffle=True, seed=1)
    batches = epoch(order)
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    assert len(order) == 11
    assert sorted(sum(batches, [])) == list(range(103))


def test_order_is_a_function_of_seed_and_epoch_alone():
    def fresh(seed):
        return BatchOrder(torch.arange(50), 7, True, seed)

    used = fresh(1)
    epoch(used, 0)
    assert epoch(used, 3) == epoch(fresh(1), 3)
    orders = [epoch(fresh(seed), number) for seed in (1, 2) for number in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@given(
    n=st.integers(1, 60), batch_size=st.integers(1, 9), ranks=st.integers(1, 3), at_once=st.none() | st.integers(1, 9)
)
def test_a_single_image_left_over_joins_the_batch_before_it(n, batch_size, ranks, at_once):
    for rank in range(ranks):
        order = BatchOrder(range(n), batch_size, True, 0, ranks, rank)
        plain = list(order._order()[rank::ranks].split(batch_size))
        order.batches_at_once = at_once and (lambda: at_once)
        batches = list(itertools.chain.from_iterable(each if isinstance(each, list) else [each] for each in order))
        assert torch.equal(torch.cat(batches), torch.cat(plain))
        sizes, share = [len(batch) for batch in batches], -(-n // ranks)
        assert len(order) == order.position == len(sizes)
        assert set(sizes[:-1]) <= {batch_size}
        if batch_size > 1:
            assert min(sizes) > 1 or share == 1
            assert sizes[-1] <= batch_size + 1
        else:
            assert sizes == [1] * share


@pytest.mark.parametrize(("n", "batch_size", "sizes"), [(90, 89, [90]), (321, 32, [32] * 9 + [33]), (1, 32, [1])])
def test_only_in_training_are_single_images_joined(n, batch_size, sizes):
    assert [len(batch) for batch in BatchOrder(range(n), batch_size, True, 0)] == sizes
    in_order = BatchOrder(range(n), batch_size, False, 0)
    assert len(in_order) == -(-n // batch_size)
    assert [len(batch) for batch in in_order] == [len(part) for part in torch.arange(n).split(batch_size)]


def batches_of(item):
    """What an item of a loader holds: a batch, or several."""
    return item.split() if isinstance(item, Batches) else [item]


@pytest.mark.parametrize("at_once", [1, 2, 3, 50])
def test_a_larger_last_batch_is_handed_out_alone(at_once):
    split = InMemoryImages(torch.randint(256, (22, 2), dtype=torch.uint8), torch.arange(22))
    order = BatchOrder(split, 7, True, seed=5)  # 7, 7 and 8
    expected = [labels.tolist() for _, labels in make_loader(split, order)]
    order.batches_at_once = lambda: at_once
    batches = [labels.tolist() for item in make_loader(split, order) for _, labels in batches_of(item)]
    assert batches == expected
    assert [len(batch) for batch in batches] == [7, 7, 8]


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
    split = InMemoryImages(torch.arange(50).float().view(50, 1), torch.arange(50))

    def loader():
        return make_loader(split, BatchOrder(torch.arange(50), 7, True, seed=5), ResumableLoader)

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
    split = InMemoryImages(torch.randint(256, (500, 2), dtype=torch.uint8), torch.arange(500))
    one_by_one = make_loader(split, BatchOrder(torch.arange(500), 7, True, seed=5))
    several = make_loader(split, BatchOrder(torch.arange(500), 7, True, seed=5))
    several.sampler.batches_at_once = lambda: at_once
    items = list(several)
    assert len(items) == -(-72 // at_once)
    batches = itertools.chain.from_iterable(map(batches_of, items))
    for (x, y), (ours, our_labels) in zip(one_by_one, batches, strict=True):
        assert torch.equal(as_floats(ours), x.float())
        assert torch.equal(our_labels, y)


def test_a_loader_leaves_the_global_generator_alone():
    loader = make_loader(InMemoryImages(torch.zeros(9, 1), torch.zeros(9)), BatchOrder(range(9), 2, True, 0))
    before = torch.get_rng_state()
    assert len(list(loader)) == len(loader) == 4
    assert torch.equal(torch.get_rng_state(), before)


def split_of_six():
    """Six of 20 images, whose pixels are their labels."""
    labels = torch.arange(20)
    images = labels.byte().view(20, 1, 1, 1).expand(20, 3, 32, 32).contiguous()
    return InMemoryImages(images, labels, torch.tensor([3, 5, 8, 13, 2, 7]))


@pytest.mark.parametrize("index", [0, 2, 5, -1, -6, torch.tensor(2), np.int64(4)])
def test_an_int_gives_one_example(index):
    image, label = split_of_six()[index]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert label.ndim == 0
    assert label == [3, 5, 8, 13, 2, 7][index]
    assert (image == label).all()


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (torch.tensor([1, 0, 1]), [5, 3, 5]),
        (slice(1, 4), [5, 8, 13]),
        (slice(None, None, 4), [3, 2]),
        ([5, -6], [7, 3]),
        ([], []),
        (torch.tensor([True, False, False, False, False, True]), [3, 7]),
    ],
)
def test_several_positions_give_a_batch(index, expected):
    images, labels = split_of_six()[index]
    assert images.shape == (len(expected), 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == expected
    assert (images[:, 0, 0, 0] == labels).all()


def test_batches_of_positions_give_batches():
    batches = split_of_six()[[torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4])]]
    assert [labels.tolist() for _, labels in batches.split()] == [[3, 5], [8, 13], [2]]


@pytest.mark.parametrize("index", [6, -7, torch.tensor([6])])
def test_no_such_position(index):
    with pytest.raises(IndexError):
        split_of_six()[index]


def test_a_split_is_as_long_as_itself_and_ends():
    split = split_of_six()
    assert len(split) == 6
    assert [label.item() for _, label in split] == [3, 5, 8, 13, 2, 7]
    assert len(InMemoryImages(split.images, split.labels)) == 20


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_of_ones_own(workers):
    loader = DataLoader(split_of_six(), batch_size=4, shuffle=True, num_workers=workers)
    batches = list(loader)
    assert [images.shape for images, _ in batches] == [(4, 3, 32, 32), (2, 3, 32, 32)]
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == [2, 3, 5, 7, 8, 13]
    part, rest = random_split(split_of_six(), [4, 2])
    (images, labels), *_ = DataLoader(part, batch_size=4)
    assert (images[:, 0, 0, 0] == labels).all()
    assert len(rest) == 2


def test_joined_orders_are_those_of_each_seed():
    joined = JoinedOrder(range(11), 4, [3, 5])
    for epoch in (0, 1):
        joined.set_epoch(epoch)
        rows = list(joined)
        for row, seed in enumerate((3, 5)):
            alone = BatchOrder(range(11), 4, True, seed)
            alone.set_epoch(epoch)
            assert [batch[row].tolist() for batch in rows] == [batch.tolist() for batch in alone]
    joined.load_state_dict({"seed": 3, "epoch": 1, "position": 2})
    assert [batch.tolist() for batch in joined] == [batch.tolist() for batch in rows[2:]]


def test_a_batch_of_several_orders_has_the_images_of_each():
    images, labels = torch.arange(11).view(11, 1, 1, 1).expand(11, 3, 2, 2), torch.arange(11)
    data = InMemoryImages(images, labels, torch.arange(10, -1, -1))
    positions = torch.tensor([[1, 2, 3], [4, 5, 6]])
    of_each = data[positions]
    assert of_each[0].shape == (2, 3, 3, 2, 2)
    assert of_each[1].tolist() == [[9, 8, 7], [6, 5, 4]]
    assert torch.equal(of_each[0][..., 0, 0, 0], of_each[1])
    several = data[[positions[:, :2], positions[:, 2:]]]
    split = list(several.split())
    assert [part.tolist() for _, part in split] == [[[9, 8], [6, 5]], [[7], [4]]]
    assert all(torch.equal(part[..., 0, 0, 0], each.float()) for part, each in split)
