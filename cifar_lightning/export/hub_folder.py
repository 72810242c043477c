"""A trained network as a folder in the form of the Hugging Face Hub, with a model card filled in from its run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cifar_lightning.analysis.metrics import evaluation_metrics
from cifar_lightning.export.image_network import ImageNetwork

#: The name by which the Hub knows a data set.
HUB_NAMES = {"CIFAR-10": "uoft-cs/cifar10", "Fashion MNIST": "zalando-datasets/fashion_mnist"}
MEASURES = {"accuracy": "accuracy", "nll": "negative log-likelihood (nats)", "brier": "Brier score", "ece": "ECE"}
CARD = """\
---
{front_matter}
---

# {name}

A multilayer perceptron with {layers} hidden layers ({activation}) that tells {count} classes apart: {classes}.
Images are uint8 of shape {shape}; standardization and temperature are inside the network.

```python
from cifar_lightning import ImageNetwork

network = ImageNetwork.from_pretrained("{name}")  # a folder, or a repository of the Hub
probabilities = network.predict_proba(images)     # (B, {shape_inner}), uint8, to (B, {count})
```

## Training data

{data}

## Recipe

{recipe}

## Results

{results}

## Limits

- A multilayer perceptron does not know that neighbouring pixels belong together; a small convolutional network is more
  accurate. Use it to learn and to compare, not where a decision depends on it.
- It gives any image one of its classes, also images of none of them. Its probabilities say nothing of such images.
- The figures are those of one training; other seeds differ, by about a percentage point of accuracy on CIFAR-10.

## Licence

The weights are published under the Apache License 2.0, as the code is. The training images keep their own terms.
"""


def write_hub_folder(
    network: ImageNetwork,
    folder: Path,
    checkpoint: Mapping[str, Any],
    tested_on: str,
    images: Tensor,
    labels: Tensor | None,
) -> None:
    """Write `config.json`, `model.safetensors` and the model card.

    Args:
        network: The network.
        folder: The folder, which is made if it is missing.
        checkpoint: Its checkpoint, which says how it was trained.
        tested_on: What the images are called.
        images: Images to measure it on, (N, C, H, W), uint8.
        labels: Their classes, (N,); None to measure nothing.

    Raises:
        ValueError: If the extra `hub` is missing.
    """
    measured = _measure(network, images, labels) if labels is not None else {}
    network.save_pretrained(folder, model_card(network, folder.name, checkpoint, tested_on, measured))


def _measure(network: ImageNetwork, images: Tensor, labels: Tensor) -> dict[str, float]:
    metrics = evaluation_metrics(network.network.output.out_features)
    for batch, theirs in zip(images.split(1000), labels.split(1000), strict=True):
        metrics.update(network.predict_proba(batch), theirs)
    values = metrics.compute()
    return {name: values[name].item() for name in MEASURES}


def model_card(
    network: ImageNetwork, name: str, checkpoint: Mapping[str, Any], tested_on: str, measured: Mapping[str, float]
) -> str:
    """The model card, in Markdown with the Hub's metadata.

    Args:
        network: The network.
        name: What the network is called.
        checkpoint: Its checkpoint.
        tested_on: What the images are called that it was measured on.
        measured: The measures by their names in `MEASURES`; none if it was not measured.
    """
    hparams = checkpoint["hyper_parameters"]
    data = checkpoint.get("datamodule_hyper_parameters", {})
    data_set = str(data.get("data_set", "unnamed data"))
    return CARD.format(
        front_matter=_front_matter(name, data_set, measured),
        name=name,
        layers=len(network.network.hidden_sizes),
        activation=network.network.activation,
        count=network.network.output.out_features,
        classes=", ".join(network.classes) or "unnamed",
        shape=network.shape,
        shape_inner=", ".join(map(str, network.shape)),
        data=_as_list({"data set": data_set} | {key: data[key] for key in DATA_FACTS if key in data}),
        recipe=_as_list(_recipe(hparams, checkpoint)),
        results=_as_list(
            {MEASURES[key]: f"{value:.4f}" for key, value in measured.items()} | {"measured on": tested_on}
        )
        if measured
        else "Not measured: the test images were not at hand.",
    )


#: What a data module's hyperparameters say of the training images.
DATA_FACTS = ("classes", "train_size", "val_split", "val_size", "scaling", "flip", "shift")
#: What a model's hyperparameters say, besides optimizer and schedule.
NETWORK_FACTS = (
    *("hidden_sizes", "block", "activation", "init", "normalization", "dropout", "dropout_p", "max_norm", "l1", "l2"),
    *("mixup", "label_smoothing"),
)


def _recipe(hparams: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: hparams[name] for name in NETWORK_FACTS if name in hparams}
    for name in ("optimizer", "schedule"):
        component = hparams.get(name)
        facts[name] = component["class_path"] if isinstance(component, Mapping) else component
        if isinstance(component, Mapping) and (options := component.get("init_args")):
            facts[f"{name}'s options"] = ", ".join(f"{key} {value}" for key, value in options.items())
    facts |= {"learning rate": hparams.get("lr"), "epochs": checkpoint.get("epoch", -1) + 1}
    facts["batch size"] = checkpoint.get("datamodule_hyper_parameters", {}).get("batch_size")
    facts["seed"] = checkpoint.get("CIFAR10DataModule", {}).get("order_seed")
    return facts


def _as_list(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items() if value is not None)


def _front_matter(name: str, data_set: str, measured: Mapping[str, float]) -> str:
    """The card's metadata; JSON is YAML too, and quotes what needs it."""
    metadata: dict[str, Any] = {
        "license": "apache-2.0",
        "library_name": "cifar_lightning",
        "pipeline_tag": "image-classification",
        "tags": ["mlp", "pytorch_model_hub_mixin", "model_hub_mixin"],
    }
    if data_set in HUB_NAMES:
        metadata["datasets"] = [HUB_NAMES[data_set]]
    if measured:
        data = {"name": data_set, "type": HUB_NAMES.get(data_set, "own"), "split": "test"}
        results = [{"type": key, "value": round(value, 4)} for key, value in measured.items()]
        task = {"type": "image-classification"}
        metadata["model-index"] = [{"name": name, "results": [{"task": task, "dataset": data, "metrics": results}]}]
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())
