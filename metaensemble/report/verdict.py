"""One plain sentence: was it worth it?"""

import math
import statistics
from collections.abc import Sequence

from metaensemble.report.aggregate import (
    aggregate,
    by_method,
    by_setting,
    lines,
    setting_of,
)
from metaensemble.report.schema import Report


def headline(reports: Sequence[Report]) -> str:
    """Return what the reader should know first.

    A single report's own verdict, if it has one, else a sentence made of its numbers;
    for several reports, the method that comes closest to the ensemble.
    """
    if len(reports) == 1:
        return reports[0].verdict or verdict(reports[0])
    best = best_method(reports)
    rivals = by_setting(reports)[setting_of(best[0])]
    values = {line.kind: line.values for line in lines(best)}
    if "recovered" not in values["method"]:
        return "The ensemble is no better than its mean member: nothing to recover."
    method, ensemble, mean = (
        f"{100 * values[kind]['accuracy'].mean:.1f}%"
        for kind in ("method", "ensemble", "mean member")
    )
    label = next(x.label for x in aggregate(rivals) if x.values == values["method"])
    return (
        f"Of {len(by_method(rivals))} methods, {label} comes closest to the ensemble: "
        f"{method} in one network, against {ensemble} for the ensemble and {mean} for "
        "its mean member."
    )


def verdict(report: Report) -> str:
    """Return in a sentence or two whether this student was worth making.

    That it is below the best member on validation comes first. Where that may be chance
    (within one standard error) or rests on the NLL alone, the sentence on test data
    follows.
    """
    if report.choice is not None:
        return f"{report.choice.sentence} {_on_test(report)}"
    against = report.against_best
    if against is None or not against.worse:
        return _on_test(report)
    name = report.method["name"]
    below = against.sentence(name)
    if report.fell_back:
        return f"{below}: the student is that member instead, as --fallback asks."
    if against.within_noise:
        below += f", within the noise of {against.images:,} validation images"
    if against.within_noise or against.difference == 0:
        return f"{below}. {_on_test(report)}"
    if report.regime == "independent" and name == "soup":
        below += (
            "; the members do not share a start, so the mean of their weights is no "
            "sensible network"
        )
    return f"{below}: ship that member, as --fallback best-member does."


def _on_test(report: Report) -> str:
    """Return one sentence on what the student is worth on test data."""
    if report.trained_together:
        return _together(report)
    name, recovered = report.method["name"], report.headroom.recovered
    members = len(report.teachers)
    if members == 1 and name != "best_member":
        own = report.student.test.accuracy
        teacher = report.mean_teacher.test.accuracy
        return (
            f"{name} with one teacher: {100 * own:.1f}%, where the teacher has "
            f"{100 * teacher:.1f}% ({100 * (own - teacher):+.1f} points)."
        )
    if recovered is None:
        return (
            f"The ensemble of {members} is no better than its mean member, so there "
            "was nothing to recover."
        )
    student, mean = report.student.test.accuracy, report.mean_teacher.test.accuracy
    if name == "soup" and report.regime == "independent" and recovered < 0:
        return (
            "The members do not share a start, so the mean of their weights is no "
            f"sensible network ({100 * student:.1f}% where one member has "
            f"{100 * mean:.1f}%): use aligned_soup, kd or weightformer."
        )
    whole = report.ensemble.test
    room = whole.accuracy - mean
    noise = math.sqrt(whole.accuracy * (1 - whole.accuracy) / whole.count)
    if room <= noise:
        return (
            f"The ensemble of {members} is hardly better than its mean member "
            f"({100 * room:+.1f} points, where chance alone makes {100 * noise:.1f}): "
            "serve the best member."
        )
    gain = f"{100 * (student - mean):+.1f} points over the mean member"
    if name == "best_member":
        return (
            f"The member that is best on validation has {100 * student:.1f}% "
            f"({gain}), the ensemble {100 * whole.accuracy:.1f}%."
        )
    if recovered <= 0:
        return (
            f"Not worth it: {name} is no better than the mean member ({gain}); "
            "serve the best member instead."
        )
    if student <= report.best_teacher.test.accuracy:
        return f"Not worth it: the best member is at least as good as {name} ({gain})."
    return (
        f"One network by {name} keeps {100 * recovered:.0f}% of the ensemble's gain "
        f"({gain}) and replaces {members} networks."
    )


def _together(report: Report) -> str:
    """Return the sentence of networks that taught one another."""
    ensembles = [f"their ensemble {100 * report.ensemble.test.accuracy:.1f}%"]
    for other in report.others:
        name, own = other.path.rpartition("/")[2], other.test.accuracy
        ensembles.append(f"{name.removesuffix('.safetensors')} {100 * own:.1f}%")
    return (
        f"{report.method['name']} trained {len(report.teachers)} networks: the student "
        f"has {100 * report.student.test.accuracy:.1f}%, the mean of them "
        f"{100 * report.mean_teacher.test.accuracy:.1f}%, {', '.join(ensembles)}. "
        "Whether they gained by it, the same network taught alone tells (metaensemble "
        "teach)."
    )


def best_method(reports: Sequence[Report]) -> list[Report]:
    """Return the reports of the method that recovered most on average."""

    def recovered(group: list[Report]) -> float:
        known = [r.headroom.recovered for r in group]
        numbers = [value for value in known if value is not None]
        return statistics.fmean(numbers) if numbers else -math.inf

    return max(by_method(reports), key=recovered)
