"""`DeepMLP` on tabular data in the style of scikit-learn: a pipeline and a grid search, with skorch.

Self-normalizing networks were made for this (Klambauer et al. 2017). Needs pip install "cifar_lightning[examples]"

python examples/tabular.py
"""

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier

from cifar_lightning import DeepMLP


def search(x: np.ndarray, y: np.ndarray, epochs: int = 20) -> GridSearchCV:
    """Choose the depth by cross-validation, from features (N, F), float32, and classes (N,), int64."""
    net = NeuralNetClassifier(
        DeepMLP,
        module__in_features=x.shape[1],
        module__num_classes=len(np.unique(y)),
        module__dropout="alpha",
        criterion=torch.nn.CrossEntropyLoss,  # takes logits; predict_proba then returns probabilities
        optimizer=torch.optim.NAdam,
        lr=1e-3,
        max_epochs=epochs,
        train_split=None,
        verbose=0,
    )
    pipeline = make_pipeline(StandardScaler(), net)
    depths = {"neuralnetclassifier__module__hidden_sizes": ["2x32", "8x32"]}
    return GridSearchCV(pipeline, depths, cv=3).fit(x, y)


if __name__ == "__main__":
    features, classes = load_breast_cancer(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(features.astype(np.float32), classes, random_state=0)
    found = search(train_x, train_y)
    print(f"best: {found.best_params_}; test accuracy {found.score(test_x, test_y):.1%}")
