"""Monte-Carlo dropout on a network of torchvision's, unchanged: what a hundred passes say of each image.

python examples/mc_dropout_on_a_convnet.py
"""

import torch
from torchvision.models import squeezenet1_1

from cifar_lightning import MCPrediction, mc_predict


def main(samples: int = 100, images: int = 8, size: int = 64) -> MCPrediction:
    """Predict random images by a network with random weights, whose dropout is before its last convolution.

    For a network of yours, load its weights; what comes before the first dropout is computed once for all samples.
    """
    network = squeezenet1_1(weights=None, num_classes=10)  # in training mode, and left so
    prediction = mc_predict(network, torch.randn(images, 3, size, size), samples=samples, seed=0)
    print(prediction)
    print("mutual information by image:", prediction.mutual_information)
    return prediction


if __name__ == "__main__":
    main()
