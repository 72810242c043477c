import pytest
import torch
import torch.nn.functional as F

from cifar_lightning.analysis.views import count_views, predict_by_views, views

IMAGES = torch.randint(256, (5, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("flip", "shift"), [(False, 0), (True, 0), (False, 1), (True, 2), (False, 5)])
def test_views_are_the_images_moved_and_mirrored(flip, shift, dtype):
    images = IMAGES.to(dtype)
    found = list(views(images, flip, shift))
    assert len(found) == count_views(flip, shift)
    assert torch.equal(found[0], images)
    expected = []
    for mirrored in (images, images.flip(-1))[: 1 + flip]:
        padded = F.pad(mirrored.float(), [shift] * 4, mode="reflect") if shift else mirrored.float()
        sides = range(2 * shift + 1)
        expected += [padded[..., top : top + 8, left : left + 6].to(dtype) for top in sides for left in sides]
    assert {view.numpy().tobytes() for view in found} == {view.contiguous().numpy().tobytes() for view in expected}


def test_a_prediction_is_the_mean_over_the_views():
    weight = torch.randn(3 * 8 * 6, 4)

    def predict(images):
        return (images.float().flatten(1) / 255 @ weight).softmax(-1)

    expected = torch.stack([predict(view) for view in views(IMAGES, True, 1)]).mean(0)
    torch.testing.assert_close(predict_by_views(predict, IMAGES, True, 1), expected)
    assert torch.equal(predict_by_views(predict, IMAGES, False, 0), predict(IMAGES))


@pytest.mark.parametrize("shift", [-1, 6])
def test_a_shift_leaves_something_of_an_image(shift):
    with pytest.raises(ValueError, match=f"shift must be 0 to 5 pixels, .* got {shift}"):
        list(views(IMAGES, False, shift))
