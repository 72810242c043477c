import pytest
import torch
import torch.nn.functional as F

from cifar_lightning.data import augment
from cifar_lightning.data.augment import Augmentation, Variants
from cifar_lightning.data.batches import BatchOrder, InMemoryImages, JoinedOrder

IMAGES = torch.randint(256, (40, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def variants(augmentation, images=IMAGES, seed=0, epoch=0, **order):
    batches = BatchOrder(range(len(images)), 4, True, seed, **order)
    batches.set_epoch(epoch)
    return Variants(images, augmentation, batches)


def all_variants(image, flip, shift):
    """Every variant of an image (C, H, W), by padding and cropping."""
    found = []
    for one in [image, image.flip(-1)][: 1 + flip]:
        padded = F.pad(one[None].float(), [shift] * 4, mode="reflect")[0].to(image.dtype) if shift else one
        height, width = image.shape[1:]
        for top in range(2 * shift + 1):
            found += [padded[:, top : top + height, left : left + width] for left in range(2 * shift + 1)]
    return found


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1), (True, 2), (False, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_variant_comes_up_about_as_often(flip, shift, channels):
    image = IMAGES[0, :channels]
    expected = all_variants(image, flip, shift)
    count = 200 * len(expected)
    found = variants(Augmentation(flip, shift), image.expand(count, -1, -1, -1))(torch.arange(count))
    of_each = torch.stack([(found == variant).flatten(1).all(1).sum() for variant in expected])
    assert of_each.sum() == count  # each is one of them
    assert ((of_each - 200).abs() < 6 * 200**0.5).all()  # six standard deviations


def test_a_variant_is_a_function_of_seed_epoch_and_image():
    both = Augmentation(flip=True, shift=2)
    everything = torch.arange(40)
    expected = variants(both)(everything)
    shuffled = torch.randperm(40)
    assert torch.equal(variants(both)(shuffled), expected[shuffled])
    assert torch.equal(torch.cat([variants(both)(part) for part in everything.split(7)]), expected)
    assert torch.equal(variants(both, num_replicas=2, rank=1)(everything), expected)
    for other in (variants(both, seed=1), variants(both, epoch=1)):
        assert not torch.equal(other(everything), expected)
    again = variants(both, epoch=1)
    again(everything)
    again._order.set_epoch(0)
    assert torch.equal(again(everything), expected)


def test_each_row_of_several_orders_has_its_own_seed():
    both = Augmentation(flip=True, shift=2)
    rows = torch.randint(40, (3, 5))
    of_all = Variants(IMAGES, both, JoinedOrder(range(40), 5, [4, 7, 4]))(rows)
    for row, seed, found in zip(rows, [4, 7, 4], of_all, strict=True):
        assert torch.equal(found, variants(both, seed=seed)(row))


@pytest.mark.parametrize("seeds", [[4], [4, 7, 4]])
def test_variants_made_as_on_a_gpu_are_the_same(monkeypatch, seeds):
    rows = torch.randint(40, (3, 5) if len(seeds) > 1 else (5,))
    made = Variants(IMAGES, Augmentation(flip=True, shift=2), JoinedOrder(range(40), 5, seeds))
    expected = made(rows)
    monkeypatch.setattr(augment, "take_rows", augment.take_pixels)
    assert torch.equal(made(rows), expected)


@pytest.mark.parametrize("seeds", [[4], [4, 7, 4]])
def test_a_split_on_a_device_makes_variants_there_without_waiting(device, seeds):
    """Tensors of the meta device have no values that could be waited for; on a GPU, torch itself finds a wait."""
    positions = torch.randint(40, (3, 5) if len(seeds) > 1 else (5,))
    order = JoinedOrder(range(40), 5, seeds)
    expected = Variants(IMAGES, Augmentation(flip=True, shift=2), order)(positions)
    for there in (torch.device("meta"), device):
        split = InMemoryImages(IMAGES, torch.arange(40), device=there)
        split.variants = Variants(IMAGES, Augmentation(flip=True, shift=2), order)
        images, labels = split[positions]
        assert (images.device.type, images.shape, images.dtype) == (there.type, expected.shape, torch.uint8)
        assert (labels.device.type, split.images.device.type) == (there.type, "cpu")
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        order.set_epoch(1)  # a new table
        split[positions]
        order.set_epoch(0)
        images, labels = split[positions]
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(images.cpu(), expected)
    assert torch.equal(labels.cpu(), positions)


def test_variants_and_order_have_nothing_to_do_with_each_other():
    data = range(20_000)
    order = BatchOrder(data, 20_000, True, seed=3)
    (positions,) = order
    drawn = Variants(torch.zeros(20_000, 1, 2, 2, dtype=torch.uint8), Augmentation(True, 1), order)._draws(positions)
    place = torch.arange(20_000.0)
    for kind in drawn:
        assert abs(torch.corrcoef(torch.stack([place, kind.float()]))[0, 1]) < 0.04  # over five standard deviations


def test_a_split_gives_variants_in_the_place_of_its_images():
    split = InMemoryImages(IMAGES, torch.arange(40), indices=torch.arange(39, 19, -1))
    order = BatchOrder(split, 4, True, seed=5)
    split.variants = made = Variants(IMAGES, Augmentation(True, 2), order)
    images, labels = split[torch.tensor([3, 0])]
    assert labels.tolist() == [36, 39]
    assert torch.equal(images, made(labels))
    assert torch.equal(split[3][0], images[0])
    several = split[[torch.tensor([3, 0]), torch.tensor([1])]]
    assert torch.equal(several.images, made(torch.tensor([36, 39, 38])))
    assert torch.equal(split[torch.tensor([[3], [0]])][0], images[:, None])


@pytest.mark.parametrize("shift", [-1, 6, 32])
def test_a_shift_leaves_something_of_an_image(shift):
    with pytest.raises(ValueError, match=f"shift must be .* got {shift}"):
        variants(Augmentation(shift=shift))


def test_nothing_is_no_augmentation():
    assert not Augmentation()
    assert torch.equal(variants(Augmentation())(torch.arange(40)), IMAGES)
