"""Curves for TensorBoard, by choice."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaensemble.core.errors import InputError


class Curves:
    """Writes figures as scalars below a folder, each stage as a run of its own.

    Stages have separate runs, for they count their steps separately, and so that
    TensorBoard lays their curves over each other.

    Args:
        folder: TensorBoard's ``--logdir``; each stage gets a folder in it.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds
        except ImportError as error:
            raise InputError(
                "curves for TensorBoard need the package tensorboard, but it is not "
                "installed; run: pip install 'metaensemble[tensorboard]'"
            ) from error
        self._folder = folder
        self._open = SummaryWriter
        self._writers: dict[str, Any] = {}
        self._kept: dict[str, int] = {}

    def begin(self, stage: str, done: int) -> None:
        """Take up `stage` where `done` steps are done: later points are dropped.

        An interrupted session may have got further than its last checkpoint, and none
        of its points is shown twice.
        """
        self._close(stage)
        self._kept[stage] = done

    def add(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Write the numbers among `figures` as they are after `step` steps.

        Raises:
            OSError: they cannot be written.
        """
        if stage not in self._writers:
            kept = self._kept.get(stage, 0)
            self._writers[stage] = self._open(
                str(self._folder / stage.replace("/", "_")),
                # A point at the checkpoint's own step was written before it.
                purge_step=kept + 1 if kept else 0,
            )
        writer = self._writers[stage]
        for name, value in figures.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                writer.add_scalar(name, value, step)
        writer.flush()

    def close(self) -> None:
        """Write what is left and close the files."""
        for stage in list(self._writers):
            self._close(stage)

    def _close(self, stage: str) -> None:
        writer = self._writers.pop(stage, None)
        if writer is not None:
            writer.close()
