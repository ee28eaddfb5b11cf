"""Pictures of predictions: what they cannot be made of."""

import pytest
from robust.corpus.images import dataset
from torch import nn

from resnest_d2 import UserError, model_zoo
from resnest_d2.data import register_pairs
from resnest_d2.evaluation import draw_predictions


def test_a_damaged_image_is_named(tmp_path):
    dataset(tmp_path, b"no image", name="bad.jpg")
    (name,) = register_pairs("val", [(str(tmp_path / "a.json"), str(tmp_path / "images"))], {})
    with pytest.raises(UserError, match=r"bad\.jpg is no image or a damaged one"):
        draw_predictions(model_zoo.get_config("quickstart"), nn.Identity(), name, tmp_path / "pictures")
