"""``metaensemble evaluate``: each model on test, and their ensemble."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from pydantic import Field
from rich.console import Console
from rich.table import Table

from metaensemble.cli.parse import parse
from metaensemble.core.files import claim_output, write_json
from metaensemble.engine import RunLog
from metaensemble.export import SUFFIXES, open_onnx
from metaensemble.metrics import Measured, disagreement, measure
from metaensemble.teachers import Ensemble
from metaensemble.teachers.ensemble import ensemble_log_probs
from metaensemble.workflows.diagnosis import diagnose
from metaensemble.workflows.fuse import tell, tell_doubts
from metaensemble.workflows.options import (
    DataOptions,
    MemberOptions,
    RunOptions,
    open_session,
)
from metaensemble.workflows.reporting import data_row


class Evaluate(RunOptions, MemberOptions, DataOptions):
    """Measure models on the test images, one by one and as an ensemble.

    Of several members, a diagnosis on validation tells whether they are worth fusing.
    Exported .onnx files count as models, too. The ensemble is of all models named.

    Example: metaensemble evaluate zoo run/student.safetensors --data digits
    """

    models: tuple[Path, ...] = Field(min_length=1)
    """Model files, or folders of members."""
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """Write the figures to this file."""
    overwrite: bool = False
    """Replace that file if it exists."""


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(Evaluate, arguments, "evaluate", positional="models")
    if options.json_file:
        claim_output(
            options.json_file, overwrite=options.overwrite, inputs=options.models
        )
    exported = [open_onnx(path) for path in options.models if path.suffix in SUFFIXES]
    files = [path for path in options.models if path.suffix not in SUFFIXES]
    data = options.load()
    ensemble = Ensemble((), options.average)
    if files:
        ensemble = options.load_members(files, data, at_least=1)
    with RunLog(quiet=options.quiet) as log:
        session = open_session(options, data, None, log)
        tell_doubts(session, ensemble)
        session.cache.compute(ensemble.members, data.test)
        rows = [session.cache.logits(m, data.test) for m in ensemble.members]
        diagnosis = diagnose(session, ensemble) if len(ensemble) > 1 else None
        if diagnosis is not None:
            tell(session, diagnosis)
    models = [*ensemble.members, *exported]
    logits = torch.stack([*rows, *(model.logits(data) for model in exported)])
    labels = data.test.labels
    each = [measure(row.log_softmax(-1), labels) for row in logits]
    together = measure(ensemble_log_probs(logits, options.average), labels)
    shown = [(str(m.path), figures) for m, figures in zip(models, each, strict=True)]
    if len(models) > 1:
        shown.append((f"ensemble of {len(models)} ({options.average})", together))
    Console().print(_table(shown))
    if options.json_file:
        document: dict[str, Any] = {
            "schema": 1,
            "command": "evaluate",
            "data": data_row(data).model_dump(mode="json"),
            "models": [
                {
                    "path": str(model.path),
                    "sha256": model.sha256,
                    "architecture": model.info.architecture,
                    "test": measured.model_dump(mode="json"),
                }
                for model, measured in zip(models, each, strict=True)
            ],
            "ensemble": {"test": together.model_dump(mode="json")},
            "disagreement": disagreement(logits.log_softmax(-1)),
        }
        if diagnosis is not None:
            document["diagnosis"] = diagnosis.model_dump(mode="json")
        write_json(options.json_file, document)


def _table(rows: Sequence[tuple[str, Measured]]) -> Table:
    table = Table(title="test")
    table.add_column("model", overflow="fold")
    for column in ("accuracy", "top-5", "NLL", "Brier", "ECE"):
        table.add_column(column, justify="right")
    for name, m in rows:
        table.add_row(
            name,
            f"{100 * m.accuracy:.2f} %",
            f"{100 * m.top5:.2f} %",
            f"{m.nll:.4f}",
            f"{m.brier:.4f}",
            f"{100 * m.ece:.2f} %",
        )
    return table
