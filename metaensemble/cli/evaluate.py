"""``metaensemble evaluate``: each model on test, and their ensemble."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from pydantic import Field
from rich.console import Console
from rich.table import Table

from metaensemble.cli.parse import parse
from metaensemble.core.files import claim_output, write_json
from metaensemble.engine import RunLog
from metaensemble.metrics import Measured, disagreement, measure
from metaensemble.workflows.diagnosis import diagnose
from metaensemble.workflows.fuse import tell
from metaensemble.workflows.options import (
    DataOptions,
    MemberOptions,
    RunOptions,
    open_session,
)
from metaensemble.workflows.reporting import data_row


class Evaluate(RunOptions, MemberOptions, DataOptions):
    """Measure models on the test images, one by one and as an ensemble.

    Of several models, a diagnosis on validation tells whether they are worth fusing.

    Example: metaensemble evaluate zoo run/student.safetensors --data digits
    """

    models: tuple[Path, ...] = Field(min_length=1)
    """Model files, or folders of them."""
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
    data = options.load()
    ensemble = options.load_members(options.models, data, at_least=1)
    with RunLog(quiet=options.quiet) as log:
        session = open_session(options, data, None, log)
        logits = session.cache.ensemble_logits(ensemble, data.test)
        diagnosis = diagnose(session, ensemble) if len(ensemble) > 1 else None
        if diagnosis is not None:
            tell(session, diagnosis)
    labels = data.test.labels
    each = [measure(rows.log_softmax(-1), labels) for rows in logits]
    together = measure(ensemble.log_probs(logits), labels)
    names = [str(member.path) for member in ensemble.members]
    rows = [*zip(names, each, strict=True)]
    if len(ensemble) > 1:
        rows.append((f"ensemble of {len(ensemble)} ({options.average})", together))
    Console().print(_table(rows))
    if options.json_file:
        document: dict[str, Any] = {
            "schema": 1,
            "command": "evaluate",
            "data": data_row(data).model_dump(mode="json"),
            "models": [
                {
                    "path": str(member.path),
                    "sha256": member.sha256,
                    "architecture": member.info.architecture,
                    "test": measured.model_dump(mode="json"),
                }
                for member, measured in zip(ensemble.members, each, strict=True)
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
