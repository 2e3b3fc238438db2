"""Reports: one schema, read by tables, figures, pages and model cards.

The schema is exported here. `table`, `figures`, `page` and `card` are imported by
name, because figures need matplotlib, which is slow to load.
"""

from metaensemble.report.files import (
    as_json,
    environment,
    read_report,
    read_reports,
    write_report,
)
from metaensemble.report.findings import (
    AgainstBest,
    Barrier,
    Curve,
    Diagnosis,
    Findings,
    Point,
)
from metaensemble.report.schema import (
    Cost,
    DataRow,
    Fidelity,
    Headroom,
    NetworkRow,
    Reliability,
    ReliabilityPair,
    Report,
    Rows,
    StudentRow,
    Study,
    TeacherRow,
    TestRow,
    headroom,
    mean_measured,
    reliability_of,
)

__all__ = [
    "AgainstBest",
    "Barrier",
    "Cost",
    "Curve",
    "DataRow",
    "Diagnosis",
    "Fidelity",
    "Findings",
    "Headroom",
    "NetworkRow",
    "Point",
    "Reliability",
    "ReliabilityPair",
    "Report",
    "Rows",
    "StudentRow",
    "Study",
    "TeacherRow",
    "TestRow",
    "as_json",
    "environment",
    "headroom",
    "mean_measured",
    "read_report",
    "read_reports",
    "reliability_of",
    "write_report",
]
