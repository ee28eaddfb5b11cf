"""Detect objects with a file of tools/export.py, with numpy, Pillow and onnxruntime alone.

python examples/onnx_predict.py detector.onnx photo.jpg
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def load(file):
    """The model, and what it says about itself."""
    session = onnxruntime.InferenceSession(file)
    return session, json.loads(session.get_modelmeta().custom_metadata_map["resnest_d2"])


def detect(session, about, image):
    """Boxes (n, 4) in pixels of the upright image, x0, y0, x1, y1; scores, descending; names of classes."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    original = np.array(image.size)
    scale = min(about["min_size"] / original.min(), about["max_size"] / original.max())
    size = (original * scale + 0.5).astype(int) if about["min_size"] else original
    pixels = np.asarray(image.resize(tuple(size), Image.Resampling.BILINEAR))
    if about["channels"] == "BGR":
        pixels = pixels[:, :, ::-1]
    inputs = {"image": pixels.transpose(2, 0, 1)[None].astype(np.float32)}
    found = dict(zip(about["outputs"], session.run(None, inputs)))
    boxes = found["boxes"] * np.tile(original / size, 2).astype(np.float32)
    return boxes, found["scores"], [about["classes"][i] for i in found["classes"]]


if __name__ == "__main__":
    session, about = load(sys.argv[1])
    with Image.open(sys.argv[2]) as image:
        boxes, scores, names = detect(session, about, image)
    for box, score, name in zip(boxes, scores, names):
        if score >= 0.5:
            print(f"{name} {score:.2f} at {box.round(1).tolist()}")
