#!/usr/bin/env python
"""Time the two backends of COCO evaluation on synthetic detections of val2017's size.

%(prog)s
%(prog)s --images 500 --repeats 3

The backends alternate. Prints the seconds of each and the median of their ratios.
"""

import contextlib
import importlib.metadata
import io
import os
import platform
import statistics
import time

import numpy as np

from resnest_d2.command_line import Parser, one_line_errors
from resnest_d2.errors import check_number, needs
from resnest_d2.evaluation.coco import BACKENDS, evaluate_coco


def synthetic(images, detections, rng):
    """Ground truth with COCO's mean of 7.3 objects per image, and detections, a third of which overlap it."""
    size, truth, found = 640, [], []
    for image in range(1, images + 1):
        boxes = []
        for _ in range(rng.poisson(7.3)):
            w, h = np.minimum(rng.lognormal(4.2, 0.9, 2), size - 1)
            box = [*rng.uniform(0, size - np.array([w, h])), w, h]
            boxes.append((box, int(rng.integers(1, 81))))
            entry = {"id": len(truth) + 1, "image_id": image, "category_id": boxes[-1][1], "iscrowd": 0}
            truth.append({**entry, "bbox": box, "area": w * h})
        for i in range(detections):
            box, category = boxes[i % len(boxes)] if boxes and i % 3 == 0 else ([0, 0, 0, 0], 0)
            box = np.array(box) + rng.normal(0, 8, 4) if category else rng.uniform(1, 200, 4)
            category = category or int(rng.integers(1, 81))
            box = [float(v) for v in (*box[:2], *np.maximum(box[2:], 1))]
            found.append({"image_id": image, "category_id": category, "bbox": box, "score": rng.random()})
    categories = [{"id": i, "name": str(i)} for i in range(1, 81)]
    records = [{"id": i, "width": size, "height": size} for i in range(1, images + 1)]
    return {"info": {}, "images": records, "annotations": truth, "categories": categories}, found


def main(args):
    for name, most in (("images", 100_000), ("detections", 1000), ("repeats", 1000)):
        check_number(f"--{name}", getattr(args, name), at_least=1, at_most=most)
    with needs(BACKENDS[0], "the comparison of backends"):
        import faster_coco_eval  # noqa: F401
    truth, found = synthetic(args.images, args.detections, np.random.default_rng(0))
    print(f"{args.images} images, {len(truth['annotations'])} objects, {len(found)} detections")
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    seconds = {backend: [] for backend in BACKENDS}
    for _ in range(args.repeats):
        stats = []
        for backend in BACKENDS:
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                stats.append(evaluate_coco(truth, found, "bbox", backend=backend).stats)
            seconds[backend].append(time.perf_counter() - start)
        assert np.abs(np.subtract(*stats)).max() < 1e-12, "the backends disagree"
    for backend, times in seconds.items():
        version = importlib.metadata.version(backend)
        print(f"{backend} {version}: median of {args.repeats}: {statistics.median(times):.1f} s")
    ratios = [slow / fast for fast, slow in zip(*seconds.values())]
    print(f"{BACKENDS[0]} takes 1/{statistics.median(ratios):.1f} of the time of {BACKENDS[1]}")


if __name__ == "__main__":
    parser = Parser(__doc__)
    parser.add_argument("--images", type=int, default=5000, help="default: %(default)s, as in val2017")
    parser.add_argument("--detections", type=int, default=100, help="per image (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="default: %(default)s")
    with one_line_errors():
        main(parser.parse_args())
