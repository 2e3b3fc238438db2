"""``metaensemble export``: a student as one file for other runtimes, verified."""

from collections.abc import Sequence

from metaensemble.cli.parse import parse
from metaensemble.workflows.exporting import ExportOptions, export_run, summary


class Export(ExportOptions):
    """Write a run's student, or any member, as one verified file to deploy.

    Example: metaensemble export run --format onnx --out student.onnx

    The file takes pixels in [0, 1], any number of images, and gives logits and
    probabilities; normalisation and temperature are inside. It is written only if it
    gives the student's logits on the test images.
    """


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(Export, arguments, "export", positional="run")
    print(summary(export_run(options)))
