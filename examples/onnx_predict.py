"""Detect objects with a file of tools/export.py, with numpy, Pillow and onnxruntime alone.

python examples/onnx_predict.py model.onnx photo.jpg
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


def resized(width, height, min_size, max_size):
    """Width and height for testing, as detectron2 computes them."""
    if not min_size:
        return width, height
    scale = min_size / min(width, height)
    if max(width, height) * scale > max_size:
        scale *= max_size / (max(width, height) * scale)
    return tuple(max(1, int(side * scale + 0.5)) for side in (width, height))


def detect(session, about, image):
    """Boxes (n, 4) in pixels of the upright image, x0, y0, x1, y1; scores, descending; names of classes."""
    if "boxes" not in about["outputs"]:
        sys.exit(f"the file must be of a detector; its outputs are {', '.join(about['outputs'])}")
    if image.mode.startswith(("I", "F")):
        sys.exit(f"the image must have 8 bits per channel, got mode {image.mode}")
    image = ImageOps.exif_transpose(image).convert("RGB")
    size = resized(*image.size, about["min_size"], about["max_size"])
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    if about["channels"] == "BGR":
        pixels = pixels[:, :, ::-1]
    inputs = {"image": pixels.transpose(2, 0, 1)[None].astype(np.float32)}
    found = dict(zip(about["outputs"], session.run(None, inputs)))
    boxes = found["boxes"] * np.tile(np.divide(image.size, size), 2).astype(np.float32)
    return boxes, found["scores"], [about["classes"][i] for i in found["classes"]]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with Image.open(sys.argv[2]) as image:
        boxes, scores, names = detect(*load(sys.argv[1]), image)
    print(f"{(scores >= 0.5).sum()} objects with a score of at least 0.5")
    for box, score, name in zip(boxes, scores, names):
        if score >= 0.5:
            print(f"{name} {score:.2f} at", *(f"{side:.1f}" for side in box))
