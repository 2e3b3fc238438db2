"""Bad options: status 2, one sentence that says what to do, and nothing written."""

from pathlib import Path

import pytest

DIGITS = "--data digits --limit-train 60 --quiet"
TEACH = "teach --architecture mlp,width=8 --members 1 --epochs 1 --quiet --out zoo"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method kdd", "--method must be one of best_member, .* but is 'kdd'; see"),
        ("--method", "--method must be followed by a value"),
        ("--method kd --epochs 0", "epochs: input should be greater than 0, but got"),
        ("--method kd --temperature -1", "temperature: .*; see: metaensemble fuse"),
        ("--method kd --label-weight 2", "label-weight: .* less than or equal to 1"),
        ("--method kd --label-weight -0.1", "label-weight: .* greater than or equal"),
        ("--method kd --temperature 0", "temperature: .* greater than 0, but got 0"),
        (
            "--method ensemble_distribution --temperature 0.5",
            "temperature: .* equal",
        ),
        (
            "--method ensemble_distribution --anneal 2",
            "anneal: .* less than or",
        ),
        (
            "--method kd --teacher-weights best",
            "--teacher-weights must be equal",
        ),
        (
            "--method kd --teacher-weights 0.5,0.5",
            "but are 2 for 5 members; ",
        ),
        (
            "--method kd --teacher-weights 1,1,1,1,-1",
            "must be finite, not negative",
        ),
        (
            "--method kd --select greedy --teacher-weights 1,1,1,1,1",
            "must be equal or validation with --select greedy, which weighs",
        ),
        ("--method kd --select best", "--select"),
        ("--method kd --learning-rate nan", "learning-rate: .*"),
        ("--method kd --device tpu", "--device must be a device of this machine, but"),
        ("--method kd --device cuda:99", "--device must be a device of this machine"),
        ("--method kd --limit-train 0", "limit-train: .* greater than or equal to 1"),
        ("--method kd --limit-train 9999", "between 1 and the 900 training images"),
        ("--method kd --limit-train 5", "must have at least 2 images, but .* raise"),
        ("--method kd --augment spin", "must be one of none, .* but is 'spin'"),
        ("--method kd --image-size 16", "leave out image_size"),
        ("--method kd --fallback worst-member", "--fallback"),
        ("--method kd --student resnet21", "'resnet21' is neither; did you mean"),
        ("--method weightformer --width 30 --heads 4", "must be a multiple of the hea"),
        ("--method weightformer --max-teachers 2", "reads 1 to 2 teachers, but got 5"),
    ],
)
def test_values(refused, zoo, flags, message):
    line = f"fuse {zoo} --data digits --limit-train 60 --quiet --out run {flags}"
    refused(line, message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "",
            "must be told which, but neither members nor --student are given; add --s",
        ),
        (
            "--student mlp,depth=0",
            "between them through which all flows, .* MLP has no",
        ),
        (
            "--student mlp,branches=2",
            "must be one network for one, but mlp,branches=2 ",
        ),
        ("--student mlp,branches=1", "branches must be a whole number of at least 2, "),
        ("--student mlpp", "'mlpp' is neither; did you mean"),
        ("--student mlp --branches 1", "branches: .* greater than or equal to 2"),
        ("--student mlp --ramp 2", "ramp: .* less than or equal to 1"),
        ("--student mlp --temperature 0", "temperature: .* greater than 0"),
        ("--student mlp --perturbation ods", "only if there are teachers, but --pert"),
        ("--student mlp --select greedy", "--select chooses among members .* but one"),
        ("--student mlp --teacher-weights 1,2", "--teacher-weights chooses among mem"),
        ("--student mlp --fallback best-member", "--fallback chooses among members"),
    ],
)
def test_networks_trained_together(refused, flags, message):
    line = f"fuse {DIGITS} --method one --epochs 1 --out run {flags}"
    refused(line, message)


def test_members_for_networks_trained_together(refused, zoo):
    refused(
        f"fuse {zoo} {DIGITS} --method one --student mlp,width=8 --out run",
        "one trains its networks itself and takes no members, but got 5; leave them o",
    )


def test_a_method_of_members_without_any(refused):
    refused(
        f"fuse {DIGITS} --method kd --student mlp,width=8 --out run",
        "must have at least 1 member, but got 0; name more member files",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: digits\nepocs: 3\n", "every key of c.yaml must be an option, but 'ep"),
        ("sed: 3\n", "but 'sed' is not; did you mean 'seed'"),
        ("seed: many\n", "in c.yaml, seed is wrong: .* but got 'many'"),
        (
            "method: {name: kd, epocs: 3}\n",
            "in c.yaml, method is wrong: kd.epocs: extra inp",
        ),
        ("method: {name: kdd}\n", "in c.yaml, method is wrong: "),
        ("- 3\n", r"c.yaml must map options to values, but holds \[3\]; write"),
        ("seed: [3\n", "c.yaml must be YAML, but is not .*; mend"),
        ("", "must map options to values, but holds None"),
    ],
)
def test_yaml(refused, zoo, text, message):
    Path("c.yaml").write_text(text)
    refused(f"fuse {zoo} --config c.yaml --out run", message)


def test_yaml_for_teach(refused):
    Path("c.yaml").write_text("architectur: mlp\n")
    refused("teach --config c.yaml --out zoo", "did you mean 'architecture'")


@pytest.mark.parametrize("path", ["lost.yaml", "."])
def test_a_config_that_is_no_file(refused, path):
    refused(f"fuse zoo --config {path} --out run", "--config must be a YAML file, but")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{TEACH} --data digits --lerning-rate 1", ("Unrecog", "--learning-rate")),
        (
            "fuse zoo --data digits --method kd --out r --temprature 2",
            ("--temperature",),
        ),
        ("fuse zoo --data digits --out r", ("--method", "required", "soup")),
        ("fuse zoo --method kd --out r", ("--data", "required")),
        ("fuse zoo --data digits --method kd --out r --epochs x", ("--epochs", "'x'")),
        (
            "fuse z --data digits --method kd --out r --average x",
            ("--average", "logits"),
        ),
        ("fuse z --data digits --method soup --out r --epochs 3", ("--epochs",)),
        ("predict zoo --out r", ("--predictor", "required")),
        ("methods --all", ("--all",)),
        ("demo --seeds 3", ("--seed",)),
    ],
)
def test_flags(cli, line, words):
    done = cli(line)
    assert done.status == 2
    assert done.out == ""
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fusee zoo", "the command must be one of demo, .* but is 'fusee'; see: "),
        (f"{TEACH} --data digits --device tpu", "--device must be a device of this"),
        (
            "teach --data digits --architecture resnet21 --out zoo",
            "'resnet21' is neither; did you mean",
        ),
        (
            "teach --data digits --architecture mlp,depht=2 --out zoo",
            "mlp has no field 'depht'; its fields are",
        ),
        (
            "teach --data digits --architecture vit_b_16 --out zoo",
            "patch=16 does not divide 8x8 pixels",
        ),
        (f"{TEACH} --data digits --members 0", "members: .* greater than or equal to"),
        (
            f"{TEACH} --data digits --classes-each 99",
            "--classes-each must be at most the number of classes, 10, but is 99; low",
        ),
        (f"{TEACH} --data digits --label-noise 1", "label-noise: .* less than 1"),
        (f"{TEACH} --data digits --start lost", "lost does not exist; make members"),
        ("evaluate --data digits", "at least 1"),
    ],
)
def test_other_commands(refused, line, message):
    refused(line, message)
