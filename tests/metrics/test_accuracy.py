import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from metaensemble.core.errors import InputError
from metaensemble.metrics import accuracy, top_k


def test_accuracy_is_torchmetrics_micro_accuracy(scored: tuple[Tensor, Tensor]):
    reference = MulticlassAccuracy(7, average="micro")
    assert accuracy(*scored) == pytest.approx(float(reference(*scored)))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_is_torchmetrics(scored: tuple[Tensor, Tensor], k: int):
    reference = MulticlassAccuracy(7, average="micro", top_k=k)
    assert top_k(*scored, k) == pytest.approx(float(reference(*scored)))


def test_top_k_is_capped_at_the_number_of_classes(scored: tuple[Tensor, Tensor]):
    assert top_k(*scored, 100) == 1.0


def test_k_below_one_is_refused(scored: tuple[Tensor, Tensor]):
    with pytest.raises(InputError, match="k must be at least 1, but is 0"):
        top_k(*scored, 0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("log_probs", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0).long(), "check that the set is not empty"),
        (torch.zeros(4), torch.zeros(4).long(), r"\(batch, classes\).*but has \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(5).long(), r"shape \(4,\).*but has \(5,\)"),
        (torch.zeros(4, 3), torch.zeros(4), "int64 class numbers, but are torch.float"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"0\.\.2, but range from 0 to 3"),
        (torch.zeros(2, 3), torch.tensor([-1, 2]), r"0\.\.2, but range from -1 to 2"),
        (torch.full((2, 3), torch.nan), torch.tensor([0, 1]), "2 of 2 rows hold NaN"),
    ],
)
def test_bad_arguments_are_refused(log_probs: Tensor, labels: Tensor, message: str):
    with pytest.raises(InputError, match=message):
        accuracy(log_probs, labels)
