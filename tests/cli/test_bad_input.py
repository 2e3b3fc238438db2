"""Bad members, predictors, outputs: status 2, one sentence, and nothing written."""

from pathlib import Path

import pytest
import torch

from metaensemble.core.errors import InputError
from metaensemble.core.states import load_state, save_state
from metaensemble.models import init_model
from metaensemble.teachers import MemberInfo, load_ensemble, save_member

DIGITS = "--data digits --limit-train 60 --quiet"
TEACH = "teach --architecture mlp,width=8 --members 1 --epochs 1 --quiet --out zoo"


@pytest.fixture(scope="session")
def bad(make_member, zoo: Path, shared: Path, digits) -> Path:
    """A folder of what nobody should fuse; `good` and `fine` are for company."""
    folder = shared / "bad"
    good = make_member(folder / "good.safetensors", 0)
    make_member(folder / "fine.safetensors", 1, start=good)
    make_member(folder / "wide.safetensors", 2, "mlp,width=16")
    whole = good.path.read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[:-100])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.safetensors").write_text("this is a shopping list")
    (folder / "text.pt").write_text("this is a shopping list")
    (folder / "twin.safetensors").write_bytes(whole)
    state, info = good.state(), good.info
    ill = {**state, "fc.bias": torch.full_like(state["fc.bias"], torch.nan)}
    save_member(folder / "nan.safetensors", ill, info)
    save_state(folder / "bare.safetensors", state, {})
    renamed = info.model_copy(update={"classes": tuple("abcdefghij")})
    save_member(folder / "renamed.safetensors", state, renamed)
    turned = info.model_copy(update={"classes": tuple("9876543210")})
    save_member(folder / "turned.safetensors", state, turned)
    tall = info.model_copy(update={"input_shape": (1, 16, 4)})
    for seed in (0, 1):
        other = make_member(folder / f"large{seed}.safetensors", 5 + seed, start=good)
        save_member(other.path, other.state(), tall)
    few = MemberInfo(
        architecture="mlp,width=8",
        classes=("0", "1", "2"),
        input_shape=digits.input_shape,
        normalization=digits.normalization,
    )
    for seed in (0, 1):
        network = init_model("mlp,width=8", 3, digits.input_shape, seed)
        save_member(folder / f"three{seed}.safetensors", network.state_dict(), few)
    (folder / "none").mkdir()
    return folder


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ("", "must have at least [12] members?, but got 0; name more member files"),
        ("good.safetensors lost.safetensors", r"lost.* does not exist; make members"),
        ("none", "must hold .safetensors, .pt or .pth files, but .*none holds none; "),
        ("good.safetensors good.safetensors", "different files, but .* named twice; "),
        ("good.safetensors twin.safetensors", "hold the same bytes; leave one out"),
        ("good.safetensors truncated.safetensors", "must be a whole safetensors file"),
        ("good.safetensors empty.safetensors", "must be a whole safetensors file"),
        ("good.safetensors text.safetensors", "must be a whole safetensors file"),
        ("good.safetensors text.pt", "must be a state dict that loads without exec"),
        ("good.safetensors nan.safetensors", "NaN or infinity in 'fc.bias'; leave"),
        ("three0.safetensors three1.safetensors", "has 3 and digits has 10; choose"),
        (
            "good.safetensors renamed.safetensors",
            "has 'a', which digits has not, and lacks '0'; ch",
        ),
        ("good.safetensors bare.safetensors", "is wrong .*; make it again"),
    ],
)
@pytest.mark.parametrize("command", ["fuse", "learn-weightformer"])
def test_members(refused, bad, command, members, message):
    paths = " ".join(str(bad / name) for name in members.split())
    rest = "--method kd --out run" if command == "fuse" else "--out wf.safetensors"
    refused(f"{command} {paths} {DIGITS} {rest}", message)


@pytest.mark.parametrize("method", ["soup", "best_member", "weightformer"])
def test_a_single_member_for_a_method_of_several(refused, bad, method):
    refused(
        f"fuse {bad / 'good.safetensors'} {DIGITS} --method {method} --out run",
        "must have at least 2 members, but got 1; name more member files",
    )


@pytest.mark.parametrize("method", ["soup", "weightformer"])
def test_classes_in_another_order(refused, bad, method):
    refused(
        f"fuse {bad / 'good.safetensors'} {bad / 'turned.safetensors'} {DIGITS} "
        f"--method {method} --out run",
        "must share one architecture and one order of classes, but .*turned.* differ",
    )


def test_images_of_another_size(refused, bad):
    refused(
        f"fuse {bad / 'large0.safetensors'} {bad / 'large1.safetensors'} {DIGITS} "
        "--method soup --out run",
        "take the data's images as they are, but .*large0.* takes 16x4 pixels and they "
        "are 8x8 pixels; choose --method kd, or data of that size",
    )


def test_a_start_in_another_order(refused, bad):
    refused(
        f"{TEACH} --data digits --start {bad / 'turned.safetensors'}",
        "--start must be of the architecture to teach and the data's order of cla",
    )


def test_members_of_different_class_counts(bad):
    # no command comes here: data are checked first
    with pytest.raises(InputError, match=r"same classes, but .* choose"):
        load_ensemble([bad / "good.safetensors", bad / "three0.safetensors"])


@pytest.mark.parametrize("method", ["soup", "weightformer"])
def test_different_architectures(refused, bad, method):
    refused(
        f"fuse {bad / 'good.safetensors'} {bad / 'wide.safetensors'} {DIGITS} "
        f"--method {method} --out run",
        r"must share one architecture, but .*wide.safetensors is mlp,width=16 and "
        r".*good.safetensors is mlp,width=8; choose --method kd",
    )


def test_a_zoo_of_different_architectures(refused, bad):
    refused(
        f"learn-weightformer {bad / 'good.safetensors'} {bad / 'wide.safetensors'} "
        f"{DIGITS} --out wf.safetensors",
        "a zoo's members must share one architecture, but",
    )


def test_another_student_for_a_merger(refused, zoo):
    refused(
        f"fuse {zoo} {DIGITS} --method soup --student mlp,width=4 --out run",
        "--student must be the members' architecture for soup, but is mlp,width=4; ",
    )


def test_a_start_of_another_architecture(refused, bad):
    refused(
        f"{TEACH} --data digits --start {bad / 'wide.safetensors'}",
        "--start must be of the architecture to teach, but .* is mlp,width=16 and",
    )


def test_an_output_that_exists(refused, zoo):
    Path("run").mkdir()
    Path("run/precious.txt").write_text("mine")
    refused(
        f"fuse {zoo} {DIGITS} --method soup --out run",
        "the output must not exist yet, but run does; choose another --out or add --ov",
    )
    refused(f"teach {DIGITS} --architecture mlp --out run", "must not exist yet")
    refused(
        f"evaluate {zoo} {DIGITS} --json run/precious.txt", "must not exist yet, but"
    )
    assert Path("run/precious.txt").read_text() == "mine"


def test_an_unfinished_run_of_other_settings(refused, zoo):
    Path(".run.partial").mkdir()
    Path(".run.partial/.identity").write_text("seed: 1\n")
    refused(
        f"fuse {zoo} {DIGITS} --method soup --out run",
        "can be resumed only with its own settings, .* add --overwrite to discard",
    )


def test_a_predictor_that_does_not_fit(refused, predictor, bad, zoo):
    line = f"--predictor {predictor} --out run --quiet"
    refused(
        f"predict {bad / 'wide.safetensors'} {line}",
        "must have the predictor's architecture, but .* has mlp,width=16 and the pre",
    )
    refused(f"predict {zoo} {line}", "reads 1 to 3 teachers, but got 5; leave some out")
    refused(
        f"predict {zoo} --predictor {zoo / '0.safetensors'} --out run",
        "must be a WeightFormer predictor, but .* is not one; make one with",
    )
    refused(
        f"predict {zoo} --predictor lost.safetensors --out run",
        "lost.safetensors does not exist; make one with: metaensemble learn-weightf",
    )
    refused(f"predict {predictor} {line}", "must be a member that metaensemble wrote")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tune-epochs 1", "tuning must have images, but .* or leave out --tune-epo"),
        ("--tune-images 1", "tuning must have images, but .* or leave out --tune-ima"),
        ("--step auto", "the choice of a step must have images, but .* --step auto"),
        ("--others x", "other ensembles must have images, but .* leave out --others"),
    ],
)
def test_what_needs_images_without_any(refused, predictor, zoo, flags, message):
    state, metadata = load_state(predictor)
    assert metadata is not None
    metadata["training"]["data_options"] = None
    save_state(Path("wf.safetensors"), state, metadata)
    refused(f"predict {zoo} --predictor wf.safetensors --out run {flags}", message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tune-images 9 --tune-epochs 1", "one budget, but --tune-images is 9 and "),
        ("--tune-images 0", "tune-images: .* greater than or equal to 1, but got 0"),
        ("--step 1.5", "step: must be auto or a number from 0 to 1, but got 1.5; see"),
        ("--step -1", "step: must be auto or a number from 0 to 1, but got -1"),
        ("--step nan", "step: must be auto or a number from 0 to 1, but got nan"),
        ("--step half", "step"),
        ("--others lost", "lost.* does not exist; make members"),
        ("--others {zoo}/0.safetensors", "--others must be other members than the tea"),
    ],
)
def test_values_of_predict(refused, predictor, zoo, flags, message):
    line = f"predict {zoo / '0.safetensors'} --predictor {predictor} --out run --quiet"
    refused(f"{line} {flags.format(zoo=zoo)}", message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--teachers 4 4 --hold-out 2", "of 5 members 2 are held out and 4 are to be"),
        ("--teachers 3 2", "two numbers from 1 to --max-teachers .*the smaller first"),
        ("--teachers 2 9", "two numbers from 1 to --max-teachers"),
        ("--teachers 2 2 --hold-out 6", "of 5 members 6 are held out"),
        ("--out wf.bin", "--out must be a .safetensors file, but is wf.bin; rename it"),
    ],
)
def test_a_zoo_that_is_too_small(refused, zoo, flags, message):
    refused(f"learn-weightformer {zoo} {DIGITS} --out wf.safetensors {flags}", message)


def test_a_loss_that_explodes_leaves_nothing(refused, zoo):
    refused(
        f"fuse {zoo} {DIGITS} --method kd --learning-rate 1e38 --clip 1e38 --epochs 9 "
        "--out run",
        "has diverged, train it again with a lower learning rate|lower --learning-rate",
    )
