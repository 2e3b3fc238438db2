"""``metaensemble fuse``: N trained models in, one student out."""

from collections.abc import Sequence

from metaensemble.cli.parse import parse_with_method
from metaensemble.cli.show import command_line, show
from metaensemble.core.files import claim_output
from metaensemble.methods import OnlineMethod
from metaensemble.models import Architecture
from metaensemble.report import Report
from metaensemble.teachers import Ensemble
from metaensemble.workflows.fuse import FuseConfig, FuseOptions, fuse_into
from metaensemble.workflows.online import grow_into
from metaensemble.workflows.options import open_session, run_folder


class Fuse(FuseOptions):
    """Make one model of N trained ones, by a method: --method NAME.

    Example: metaensemble fuse zoo --method kd --data digits --out run

    metaensemble methods lists the methods; metaensemble fuse --method NAME --help shows
    a method's own options. --config FILE reads options from a YAML file, such as a
    run's config.yaml.
    """


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    config = parse_with_method(
        Fuse, FuseConfig, arguments, "fuse", positional="members"
    )
    claim_output(config.out, overwrite=config.overwrite)
    data = config.load(unlabelled=config.unlabelled)
    method = config.method
    alone = isinstance(method, OnlineMethod) and not config.members
    ensemble = Ensemble(())
    if not alone:
        ensemble = config.load_members(
            config.members, data, at_least=max(1, method.fewest_members)
        )
    extra = {"teachers_sha256": [m.sha256 for m in ensemble.members]}
    with run_folder(
        config.out, config, overwrite=config.overwrite, extra=extra
    ) as folder:
        with folder.log(config) as log:
            session = open_session(config, data, folder.shared, log)
            command = command_line("fuse", arguments)
            if isinstance(method, OnlineMethod) and alone:
                report = grow_into(
                    folder.own,
                    session,
                    method,
                    config.choices,
                    config.average,
                    command=command,
                    final=config.out,
                )
            else:
                report = fuse_into(
                    folder.own,
                    session,
                    ensemble,
                    method,
                    config.choices,
                    command=command,
                    final=config.out,
                )
    show([report], config.out)
    print(f"To deploy it: {_export_line(config, report)}")


def _export_line(config: FuseConfig, report: Report) -> str:
    """Return the command that exports a run's student, consent to its code included."""
    words = ["export", str(config.out), "--format", "onnx", "--out", "student.onnx"]
    architecture = Architecture.parse(config.student or report.teachers[0].architecture)
    if architecture.is_import_path:
        words += ["--architecture", str(architecture.plain)]
    return command_line(words[0], words[1:])
