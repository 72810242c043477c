import torch

from cifar_lightning.data.synthetic import synthetic_images


def nearest_mean_accuracy(x, y, x_test, y_test):
    means = torch.stack([x[y == k].mean(0) for k in range(10)])
    return (torch.cdist(x_test, means).argmin(1) == y_test).double().mean()


def test_is_learnable_but_not_trivially():
    _, (x, y), (x_test, y_test) = synthetic_images(2000, 500)
    x, x_test = x.flatten(1).float() / 255, x_test.flatten(1).float() / 255
    assert 0.15 < nearest_mean_accuracy(x, y, x_test, y_test) < 0.6  # colours and places vary too much
    grey, grey_test = (z.view(-1, 3, 1024).mean(1) for z in (x, x_test))
    grey, grey_test = (z - z.mean(1, keepdim=True) for z in (grey, grey_test))
    assert nearest_mean_accuracy(grey, y, grey_test, y_test) > 0.4  # the shapes are there


def test_seed():
    (_, (x, _), _), (_, (same, _), _), (_, (other, _), _) = (synthetic_images(20, 5, seed) for seed in (1, 1, 2))
    assert torch.equal(x, same)
    assert not torch.equal(x, other)
