"""Monte-Carlo dropout on an unmodified torchvision network: a hundred passes per image.

python examples/mc_dropout_on_a_convnet.py
"""

import torch
from torchvision.models import squeezenet1_1

from cifar_lightning import MCPrediction, mc_predict


def main(samples: int = 100, images: int = 8, size: int = 64) -> MCPrediction:
    """Predict random images with a randomly initialized network that has dropout before its last convolution.

    For a network of your own, load its weights. Everything before the first dropout is computed once for all samples.
    """
    network = squeezenet1_1(weights=None, num_classes=10)  # stays in training mode
    prediction = mc_predict(network, torch.randn(images, 3, size, size), samples=samples, seed=0)
    print(prediction)
    print("mutual information by image:", prediction.mutual_information)
    return prediction


if __name__ == "__main__":
    main()
