import base64
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from metaensemble.data import TensorSplit
from metaensemble.report.contrast import LARGEST, contrasts
from metaensemble.report.predictions import Predictions

Predicted = Callable[..., Predictions]


def test_the_images_that_differ_most_come_first(
    predicted: Predicted, test_split: TensorSplit
):
    found = contrasts(predicted(), test_split)
    gaps = [abs(one.student_on_label - one.ensemble_on_label) for one in found]
    assert len(found) == 12
    assert gaps == sorted(gaps, reverse=True)
    student, ensemble = (predicted().models[n] for n in ("student", "ensemble"))
    split = student.decision != ensemble.decision
    assert int(split.sum()) >= 12
    assert all(one.student != one.ensemble for one in found)
    apart = (student.label.exp() - ensemble.label.exp()).abs()[split]
    assert gaps[0] == pytest.approx(float(apart.max()))


def test_a_picture_is_the_image(predicted: Predicted, test_split: TensorSplit):
    one = contrasts(predicted(), test_split)[0]
    picture = Image.open(io.BytesIO(base64.b64decode(one.png)))
    assert picture.format == "PNG"
    image = test_split.images[one.image, 0].numpy()
    assert (np.asarray(picture) == image).all()
    assert one.label == "abcdefghi"[int(test_split.labels[one.image])]


def test_large_and_coloured_images_are_reduced(predicted: Predicted):
    images = torch.zeros(200, 3, 200, 400, dtype=torch.uint8)
    found = contrasts(predicted(), TensorSplit(images, predicted().labels))
    assert (found[0].width, found[0].height) == (LARGEST, LARGEST // 2)


def test_without_a_picture_or_a_difference_there_is_nothing(
    predicted: Predicted, test_split: TensorSplit
):
    two = TensorSplit(test_split.images.repeat(1, 2, 1, 1), test_split.labels)
    assert contrasts(predicted(), two) == []
    same = {**predicted().models, "student": predicted().models["ensemble"]}
    assert contrasts(replace(predicted(), models=same), test_split) == []
