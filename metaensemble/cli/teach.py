"""``metaensemble teach``: train the members of a zoo."""

from collections.abc import Sequence

from metaensemble.cli.parse import parse
from metaensemble.core.files import claim_output
from metaensemble.models import Architecture
from metaensemble.teachers import load_member
from metaensemble.workflows.options import open_session, run_folder
from metaensemble.workflows.teach import TeachOptions, teach_members


class Teach(TeachOptions):
    """Train members: networks of one architecture that differ in their seed.

    Example: metaensemble teach --data digits --architecture convnet,width=8
    --members 4 --out zoo

    --config FILE reads options from a YAML file, such as a zoo's config.yaml.
    """


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(Teach, arguments, "teach", hidden=("name",))
    claim_output(options.out, overwrite=options.overwrite)
    Architecture.parse(options.architecture)
    data = options.load()
    start = load_member(options.start, data=data) if options.start else None
    extra = {"start_sha256": start.sha256 if start else None}
    with run_folder(
        options.out, options, overwrite=options.overwrite, extra=extra, divided=False
    ) as folder:
        with folder.log(options) as log:
            session = open_session(options, data, folder.shared, log)
            taught = teach_members(
                session,
                folder.shared,
                architecture=options.architecture,
                members=options.members,
                method=options.supervised,
                start=start,
                knowledge=options.knowledge,
            )
            for member in taught:
                accuracy = member.info.metrics["validation"]["accuracy"]
                log.say(f"{member.name}: {100 * accuracy:.1f} % on validation")
    print(f"{len(taught)} members in {options.out}")
