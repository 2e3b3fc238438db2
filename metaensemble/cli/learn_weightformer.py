"""``metaensemble learn-weightformer``: train a predictor on subsets of a zoo."""

from collections.abc import Mapping, Sequence
from typing import Any

from metaensemble.cli.parse import parse
from metaensemble.core.errors import InputError
from metaensemble.core.files import claim_output, partial_folder
from metaensemble.report.conditioning import listening
from metaensemble.weightformer import load_predictor, save_predictor
from metaensemble.workflows.conditioning import with_conditioning
from metaensemble.workflows.learning import LearnOptions, learn_predictor
from metaensemble.workflows.options import open_session, run_folder


class LearnWeightformer(LearnOptions):
    """Train a WeightFormer on random subsets of a zoo, for teachers it never saw.

    Example: metaensemble learn-weightformer zoo --data digits --out wf.safetensors

    --config FILE reads options from a YAML file. The log lies beside --out.
    """


def run(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(
        LearnWeightformer, arguments, "learn-weightformer", positional="zoo"
    )
    if options.out.suffix != ".safetensors":
        raise InputError(
            f"--out must be a .safetensors file, but is {options.out}; rename it"
        )
    side = options.out.with_suffix("")  # config, log and, before the end, checkpoints
    side = side.with_name(side.name + "-training")
    # A run that was killed once it had written --out is unfinished, and goes on.
    again = options.overwrite or partial_folder(side).exists()
    claim_output(options.out, overwrite=again, inputs=options.zoo)
    data = options.load(unlabelled=options.unlabelled)
    zoo = options.load_members(options.zoo, data)
    extra = {"zoo_sha256": [m.sha256 for m in zoo.members]}
    with run_folder(side, options, overwrite=options.overwrite, extra=extra) as folder:
        with folder.log(options) as log:
            session = open_session(options, data, folder.shared, log)
            learnt = learn_predictor(
                session,
                zoo,
                options.training,
                teachers=options.teachers,
                hold_out=options.hold_out,
                data_options=options,
            )
            predictor = with_conditioning(session, learnt.predictor, zoo)
            if session.world.first:
                save_predictor(options.out, predictor)
            session.world.wait()
            session.clear_checkpoints()
    best = min(learnt.student.history, key=lambda row: row["objective"])
    print(
        f"{options.out}: best on validation at step {int(best['step'])}, where the "
        f"student of unseen members has {100 * best['accuracy']:.1f} % and agrees with "
        f"their ensemble on {100 * best['agreement']:.1f} % (log: {side})"
    )
    if "conditioning" in predictor.info.training:
        print(_listens(predictor.info.training))
    load_predictor(options.out)  # what was written can be read


def _listens(training: Mapping[str, Any]) -> str:
    """Return whether a predictor listens to its teachers, and on whom that was seen."""
    of = training["conditioning_ensembles"]
    counts = {"held-out": of["held_out"], "training": of["training"]}
    who = " and ".join(f"{n} of {kind} members" for kind, n in counts.items() if n)
    line = listening(training["conditioning"])
    return f"Conditioning: {line}: {who}, {of['size']} each"
