"""Exports a trained network as a folder for the Hugging Face Hub, with a model card filled in from its run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cifar_lightning.analysis.metrics import evaluation_metrics
from cifar_lightning.export.image_network import ImageNetwork

#: The names of data sets on the Hub.
HUB_NAMES = {"CIFAR-10": "uoft-cs/cifar10", "Fashion MNIST": "zalando-datasets/fashion_mnist"}
MEASURES = {"accuracy": "accuracy", "nll": "negative log-likelihood (nats)", "brier": "Brier score", "ece": "ECE"}
CARD = """\
---
{front_matter}
---

# {name}

A multilayer perceptron with {layers} hidden layers ({activation}) that classifies images into {count} classes:
{classes}. Images are uint8 of shape {shape}; standardization and temperature are part of the network.

```python
from cifar_lightning import ImageNetwork

network = ImageNetwork.from_pretrained("{name}")  # a folder, or a repository on the Hub
probabilities = network.predict_proba(images)     # (B, {shape_inner}), uint8, to (B, {count})
```

## Training data

{data}

## Recipe

{recipe}

## Results

{results}

## Limits

- A multilayer perceptron ignores the arrangement of pixels; even a small convolutional network is more accurate. Use it
  for learning and for comparisons, not for decisions that matter.
- It assigns one of its classes to any image, even if none applies. Its probabilities are meaningless for such images.
- The results are those of a single run; other seeds differ by about a percentage point of accuracy on CIFAR-10.

## Licence

The weights are published under the Apache License 2.0, like the code. The training images have their own terms.
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
        folder: The folder, created if missing.
        checkpoint: Its checkpoint, which says how it was trained.
        tested_on: Description of the images.
        images: Images for the evaluation, (N, C, H, W), uint8.
        labels: Their classes, (N,); None for no evaluation.

    Raises:
        ValueError: If the `hub` extra is missing.
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
        name: The network's name.
        checkpoint: Its checkpoint.
        tested_on: Description of the images that it was evaluated on.
        measured: The metrics by their names in `MEASURES`; {} if it was not evaluated.
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
        else "Not evaluated: the test images were not available.",
    )


#: What a data module's hyperparameters say of the training images.
DATA_FACTS = ("classes", "train_size", "val_split", "val_size", "scaling", "flip", "shift")
#: What a model's hyperparameters say, besides optimizer and schedule.
NETWORK_FACTS = (
    *("hidden_sizes", "block", "activation", "init", "normalization", "dropout", "dropout_p", "max_norm", "l1", "l2"),
    *("mixup", "cutmix", "label_smoothing"),
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
    """The card's metadata; JSON is also YAML, and takes care of quoting."""
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
