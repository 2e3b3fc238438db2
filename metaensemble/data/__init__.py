"""Data: images in splits, their augmentation, normalisation and batches."""

from metaensemble.data.augmentation import Augmentation, parse_augmentation
from metaensemble.data.batches import (
    batch_indices,
    epoch_of,
    epoch_order,
    in_order,
    steps_per_epoch,
)
from metaensemble.data.load import ImageData, is_embedded, load_data
from metaensemble.data.normalization import Normalization, parse_normalization
from metaensemble.data.split import UNKNOWN, Split, TensorSplit, concatenate
from metaensemble.data.streamed import StreamedSplit

__all__ = [
    "UNKNOWN",
    "Augmentation",
    "ImageData",
    "Normalization",
    "Split",
    "StreamedSplit",
    "TensorSplit",
    "batch_indices",
    "concatenate",
    "epoch_of",
    "epoch_order",
    "in_order",
    "is_embedded",
    "load_data",
    "parse_augmentation",
    "parse_normalization",
    "steps_per_epoch",
]
