"""``metaensemble predict``: write a student in one forward pass."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metaensemble.cli.parse import parse
from metaensemble.cli.show import command_line, show
from metaensemble.core.errors import InputError
from metaensemble.core.files import claim_output
from metaensemble.engine import RunLog
from metaensemble.methods import reading_for
from metaensemble.report import Report
from metaensemble.teachers import Ensemble, load_ensemble, save_member
from metaensemble.weightformer import Predictor, load_predictor
from metaensemble.workflows.options import Session, open_session, run_folder
from metaensemble.workflows.predict import (
    PredictOptions,
    predictor_method,
    seen_members,
)
from metaensemble.workflows.reporting import STUDENT_FILE, write_run
from metaensemble.workflows.students import (
    predicted_student,
    refuse_unfit,
    tune_student,
)


class Predict(PredictOptions):
    """Write the student of members in one forward pass of a trained predictor.

    Example: metaensemble predict zoo2 --predictor wf.safetensors --out run

    --config FILE reads options from a YAML file, such as a run's config.yaml.
    """


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(Predict, arguments, "predict", positional="members")
    claim_output(options.out, overwrite=options.overwrite)
    predictor = load_predictor(options.predictor)
    data_options = options.data_options(predictor)
    if data_options is None and options.tune_epochs:
        raise InputError(
            "tuning must have images, but there are none; add --data, or leave out "
            "--tune-epochs"
        )
    data = data_options and data_options.load(unlabelled=options.unlabelled)
    ensemble = load_ensemble(
        options.members,
        architecture=predictor.info.architecture,
        data=data,
        normalization=predictor.info.normalization,
        average=options.average,
        at_least=1,
    )
    refuse_unfit(ensemble, predictor)
    extra = {"teachers_sha256": [m.sha256 for m in ensemble.members]}
    notes: tuple[str, ...] = ()
    with run_folder(
        options.out, options, overwrite=options.overwrite, extra=extra
    ) as folder:
        if data is None:
            notes = _write_unmeasured(folder / STUDENT_FILE, ensemble, predictor)
            report = None
        else:
            with RunLog(folder / "log.jsonl", quiet=options.quiet) as log:
                session = open_session(options, data, folder, log)
                report = _write_measured(
                    folder,
                    session,
                    ensemble,
                    predictor,
                    options,
                    command_line("predict", arguments),
                )
    if report is None:
        print(f"Written to {options.out}, unmeasured: add --data for a report")
        print(f"({'; '.join(notes)})")
    else:
        show([report], options.out)


def _write_unmeasured(
    path: Path, ensemble: Ensemble, predictor: Predictor
) -> tuple[str, ...]:
    """Write the student with the mean of the members' statistics; return notes."""
    began = time.monotonic()
    state = predictor.predict(reading_for(predictor, ensemble).states)
    notes = _notes(ensemble, predictor, time.monotonic() - began)
    training = {"command": "predict", "teachers": [m.sha256 for m in ensemble.members]}
    update = {"training": training, "metrics": {}, "start": None}
    save_member(path, state, ensemble.info.model_copy(update=update))
    return notes


def _notes(ensemble: Ensemble, predictor: Predictor, seconds: float) -> tuple[str, ...]:
    notes = [f"predicted in {seconds:.2f} s"]
    known = seen_members(ensemble, predictor)
    if known:
        notes.append(f"the predictor's training saw {', '.join(known)}")
    return tuple(notes)


def _write_measured(
    folder: Path,
    session: Session,
    ensemble: Ensemble,
    predictor: Predictor,
    options: PredictOptions,
    command: str,
) -> Report:
    began = time.monotonic()
    student = predicted_student(session, ensemble, predictor)
    notes = _notes(ensemble, predictor, time.monotonic() - began)
    student = replace(student, notes=notes)
    method = predictor_method(predictor).model_copy(
        update={
            "tune_epochs": options.tune_epochs,
            "tune_learning_rate": options.tune_learning_rate,
        }
    )
    student = tune_student(session, ensemble, student, method) or student
    report = write_run(
        folder,
        session,
        ensemble,
        student,
        command=command,
        method=method,
        final=options.out,
    )
    session.clear_checkpoints()
    return report
