"""Pictures of predictions: what they cannot be made of."""

import json

import pytest
from torch import nn

from resnest_d2 import UserError, model_zoo
from resnest_d2.data import register_pairs
from resnest_d2.evaluation import draw_predictions


def test_a_damaged_image_is_named(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "bad.jpg", "width": 20, "height": 10}],
        "annotations": [box],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    (name,) = register_pairs("val", [(str(tmp_path / "a.json"), str(tmp_path))], {})
    with pytest.raises(UserError, match=r"bad\.jpg is no image or a damaged one"):
        draw_predictions(model_zoo.get_config("quickstart"), nn.Identity(), name, tmp_path / "pictures")
