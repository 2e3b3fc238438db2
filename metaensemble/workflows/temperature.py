"""After the work: a temperature fitted on validation, folded into the student."""

from dataclasses import replace

from metaensemble.core.errors import InputError
from metaensemble.metrics import fit_temperature
from metaensemble.metrics.calibration import TEMPERATURES
from metaensemble.models import init_model
from metaensemble.models.logits import with_scaled_logits
from metaensemble.teachers import MemberInfo
from metaensemble.workflows.options import Session
from metaensemble.workflows.students import Student, evaluate_on


def calibrated(session: Session, student: Student) -> Student:
    """Return the student with its logits divided by the temperature T that fits best.

    T minimises the NLL on the validation split (Guo et al. 2017, section 4.2); weight
    and bias of the last linear layer are divided by it, so that the network stays a
    plain one. Decisions stay as they are. Where no T in `TEMPERATURES` is better than
    1, or the best lies at their edge (every decision is right), the student stays.

    Raises:
        InputError: the student's logits are not the output of a linear layer.
    """
    split, info = session.data.validation, student.info
    before = evaluate_on(session, student.network, info, split)
    temperature = fit_temperature(before.log_probs, split.labels)
    low, high = TEMPERATURES
    if not 1.01 * low < temperature < 0.99 * high:
        note = (
            f"no temperature was folded in: {len(split):,} validation images, of which "
            f"{100 * before.measured.accuracy:.1f} % are right, do not set one"
        )
        return replace(student, notes=(*student.notes, note))
    scaled = with_scaled_logits(student.network, info.input_shape, 1 / temperature)
    if scaled is None:
        raise InputError(_REFUSAL.format(info.architecture))
    after = evaluate_on(session, scaled, info, split)
    if after.measured.nll >= before.measured.nll:
        temperature, scaled, after = 1.0, student.network, before
    note = (
        f"temperature {temperature:.3f}, fitted on validation, is folded into the last "
        f"linear layer: NLL {before.measured.nll:.4f} before, {after.measured.nll:.4f} "
        f"after; ECE {100 * before.measured.ece:.2f} % before, "
        f"{100 * after.measured.ece:.2f} % after"
    )
    session.log.event("calibrated", temperature=temperature, nll=after.measured.nll)
    return replace(
        student,
        network=scaled,
        temperature=temperature,
        notes=(*student.notes, note),
    )


def refuse_without_head(info: MemberInfo) -> None:
    """Refuse, before any work, an architecture that no temperature can be folded into.

    Raises:
        InputError: its logits are not the output of a linear layer.
    """
    network = init_model(info.architecture, len(info.classes), info.input_shape, 0)
    if with_scaled_logits(network, info.input_shape, 0.5) is None:
        raise InputError(_REFUSAL.format(info.architecture))


_REFUSAL = (
    "a student's logits must be the output of a linear layer for --calibrate, but "
    "those of {} are not; leave out --calibrate"
)
