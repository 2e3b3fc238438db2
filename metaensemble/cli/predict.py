"""``metaensemble predict``: write a student in one forward pass."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metaensemble.cli.parse import parse
from metaensemble.cli.show import command_line, show
from metaensemble.core.files import claim_output
from metaensemble.methods import reading_for
from metaensemble.report import Report, write_report
from metaensemble.report.conditioning import listening, listening_lines
from metaensemble.teachers import Ensemble, save_member
from metaensemble.weightformer import Predictor, load_predictor
from metaensemble.workflows.conditioning import conditioning
from metaensemble.workflows.options import Session, open_session, run_folder
from metaensemble.workflows.predict import (
    PredictOptions,
    best_step,
    predictor_method,
    seen_members,
)
from metaensemble.workflows.predicting import (
    predicted_student,
    refined_student,
    tune_student,
)
from metaensemble.workflows.reporting import STUDENT_FILE, write_run
from metaensemble.workflows.students import distillation_images


class Predict(PredictOptions):
    """Write the student of members in one forward pass of a trained predictor.

    Example: metaensemble predict zoo2 --predictor wf.safetensors --out run

    A teacher that comes later costs one forward pass more: predict again, with the same
    predictor, for the old members and the new one (up to its --max-teachers).

    --config FILE reads options from a YAML file, such as a run's config.yaml.
    """


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(Predict, arguments, "predict", positional="members")
    claim_output(options.out, overwrite=options.overwrite)
    predictor = load_predictor(options.predictor)
    data_options = options.data_options(predictor)
    if data_options is None:
        options.refuse_without_images()
    data = data_options and data_options.load(unlabelled=options.unlabelled)
    ensemble = options.load_members(options.members, predictor, data)
    others = options.load_others(ensemble, predictor, data) if data else []
    extra = {
        "teachers_sha256": [m.sha256 for m in ensemble.members],
        "others_sha256": [m.sha256 for other in others for m in other.members],
    }
    notes: tuple[str, ...] = ()
    with run_folder(
        options.out, options, overwrite=options.overwrite, extra=extra
    ) as folder:
        if data is None:
            notes = _write_unmeasured(folder.own, ensemble, predictor, options)
            report = None
        else:
            with folder.log(options) as log:
                session = open_session(options, data, folder.shared, log)
                report = _write_measured(
                    folder.own,
                    session,
                    [ensemble, *others],
                    predictor,
                    options,
                    command_line("predict", arguments),
                )
    if report is None:
        print(f"Written to {options.out}, unmeasured: add --data for a report")
        print(f"({'; '.join(notes)})")
        return
    show([report], options.out)
    if report.conditioning:
        print(f"Conditioning: {listening(report.conditioning)}")


def _write_unmeasured(
    folder: Path, ensemble: Ensemble, predictor: Predictor, options: PredictOptions
) -> tuple[str, ...]:
    """Write the student with the mean of the members' statistics; return notes."""
    assert options.step != "auto"
    began = time.monotonic()
    states = reading_for(predictor, ensemble).states
    state = predictor.predict(states, step=options.step)
    notes = _notes(ensemble, predictor, time.monotonic() - began)
    training = {"command": "predict", "teachers": [m.sha256 for m in ensemble.members]}
    update = {"training": training, "metrics": {}, "start": None}
    info = ensemble.info.model_copy(update=update)
    save_member(folder / STUDENT_FILE, state, info)
    return (*notes, *_step_notes(options.step))


def _notes(ensemble: Ensemble, predictor: Predictor, seconds: float) -> tuple[str, ...]:
    notes = [f"predicted in {seconds:.2f} s"]
    known = seen_members(ensemble, predictor)
    if known:
        notes.append(f"the predictor's training saw {', '.join(known)}")
    return tuple(notes)


def _step_notes(step: float) -> tuple[str, ...]:
    if step == 1:
        return ()
    return (f"step {step:g} from the reference (0) to the prediction (1) was asked",)


def _write_measured(
    folder: Path,
    session: Session,
    ensembles: Sequence[Ensemble],
    predictor: Predictor,
    options: PredictOptions,
    command: str,
) -> Report:
    """Write the run of the first ensemble, compared with the others if there are."""
    ensemble = ensembles[0]
    began = time.monotonic()
    if options.step == "auto":
        step, student, note = best_step(session, ensemble, predictor)
        told = (note,)
    else:
        step, told = options.step, _step_notes(options.step)
        student = predicted_student(session, ensemble, predictor, step=step)
    notes = (*_notes(ensemble, predictor, time.monotonic() - began), *told)
    measured = None
    if len(ensembles) > 1:
        measured = conditioning(session, predictor, ensembles, step=step)
        session.log.event("conditioning", **measured)
        notes = (*notes, *listening_lines(measured))
    elif learnt := predictor.info.training.get("conditioning"):
        measured = {str(name): float(value) for name, value in learnt.items()}
        notes = (*notes, f"when it was learnt, {listening(measured)}")
    student = replace(student, notes=notes)
    student = refined_student(session, ensemble, student, options.refine)
    method = predictor_method(predictor).model_copy(
        update={
            "refine": options.refine,
            "tune_epochs": options.passes(len(distillation_images(session))),
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
        license=options.license,
    )
    if measured is not None:
        report = report.model_copy(update={"conditioning": measured})
        write_report(folder / "report.json", report)
    session.clear_checkpoints()
    return report
