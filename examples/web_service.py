"""A web service that classifies uploaded images with an exported network, without torch or Lightning.

pip install "cifar_lightning[examples]" onnxruntime
cifar-lightning export --config one_cycle --ckpt_path best --format onnx --out net.onnx
MODEL=net.onnx uvicorn --app-dir examples web_service:app
curl -F image=@cat.png localhost:8000/predict
"""

import json
import os
from io import BytesIO
from typing import Annotated

import numpy as np
import onnxruntime
from fastapi import FastAPI, File, HTTPException
from PIL import Image, UnidentifiedImageError

session = onnxruntime.InferenceSession(os.environ.get("MODEL", "net.onnx"))
metadata = session.get_modelmeta().custom_metadata_map
CLASSES: list[str] = json.loads(metadata["classes"])
CHANNELS, HEIGHT, WIDTH = json.loads(metadata["shape"])
LARGEST = 10_000_000  # most pixels of an accepted image
app = FastAPI(title="Image classifier")


@app.post("/predict")
def predict(image: Annotated[bytes, File()]) -> dict[str, float]:
    """The probability of each class."""
    try:
        with Image.open(BytesIO(image)) as opened:
            if opened.width * opened.height > LARGEST:
                raise HTTPException(
                    413, f"image too large: expected at most {LARGEST:,} pixels, got {opened.width} x {opened.height}"
                )
            pixels = np.asarray(opened.convert("L" if CHANNELS == 1 else "RGB").resize((WIDTH, HEIGHT)))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise HTTPException(422, "not an image: expected PNG, JPEG or another format that Pillow reads") from error
    batch = pixels.reshape(1, HEIGHT, WIDTH, CHANNELS).transpose(0, 3, 1, 2)
    (probabilities,) = session.run(["probabilities"], {"images": np.ascontiguousarray(batch)})
    return dict(zip(CLASSES, map(float, probabilities[0]), strict=True))
