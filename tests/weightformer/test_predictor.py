from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from metaensemble.core.errors import InputError, MissingFileError
from metaensemble.core.states import State, hash_state, load_state, save_state
from metaensemble.data import Normalization
from metaensemble.teachers import Member
from metaensemble.weightformer import (
    Predictor,
    PredictorInfo,
    WeightFormer,
    load_predictor,
    save_predictor,
)

NAME = "convnet,width=2"


@pytest.fixture
def teachers(teachers_of: Callable[..., list[State]]) -> list[State]:
    return teachers_of(NAME, 3)


@pytest.fixture
def predictor(
    generator_of: Callable[..., WeightFormer], teachers: list[State]
) -> Predictor:
    network = generator_of(NAME, teachers[:2], head="mixture", dropout=0.1)
    info = PredictorInfo(
        config=network.config,
        spec=network.spec,
        architecture=NAME,
        classes=("a", "b", "c"),
        input_shape=(1, 8, 8),
        normalization=Normalization(mean=(0.3,), std=(0.4,)),
        trained_on=("0" * 64,),
        training={"seed": 0, "history": [{"step": 1, "kl": 0.5}]},
    )
    return Predictor(network, info)


def test_a_predictor_predicts_the_same_after_saving_and_loading(
    tmp_path: Path, predictor: Predictor, teachers: list[State]
):
    path = tmp_path / "predictor.safetensors"
    save_predictor(path, predictor)
    loaded = load_predictor(path)
    assert loaded.info == predictor.info
    for chosen in (teachers, teachers[:1], [teachers[2], teachers[0]]):
        assert hash_state(loaded.predict(chosen)) == hash_state(
            predictor.predict(chosen)
        )


def test_the_file_is_the_same_every_time(tmp_path: Path, predictor: Predictor):
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    save_predictor(paths[0], predictor)
    save_predictor(paths[1], predictor)
    save_predictor(paths[2], load_predictor(paths[0]))
    assert len({path.read_bytes() for path in paths}) == 1


def test_dropout_is_off_in_predictions(predictor: Predictor, teachers: list[State]):
    predictor.network.train()
    first, second = predictor.predict(teachers), predictor.predict(teachers)
    assert hash_state(first) == hash_state(second)


def test_predictions_have_the_names_order_and_dtypes_of_the_teachers(
    predictor: Predictor, teachers: list[State]
):
    half = [
        {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        for state in teachers
    ]
    predicted = predictor.predict(half)
    assert list(predicted) == list(half[0])
    for name, tensor in predicted.items():
        assert tensor.dtype == half[0][name].dtype, name
        assert not tensor.requires_grad


def test_buffers_are_the_mean_of_the_teachers(
    predictor: Predictor, teachers: list[State]
):
    predicted = predictor.predict(teachers)
    mean = torch.stack([state["bn1.running_var"] for state in teachers]).mean(0)
    torch.testing.assert_close(predicted["bn1.running_var"], mean)
    count = predicted["bn1.num_batches_tracked"]
    assert torch.equal(count, teachers[0]["bn1.num_batches_tracked"])
    count += 1  # a copy: the teacher keeps its own
    assert teachers[0]["bn1.num_batches_tracked"].item() == 0


def test_predicting_leaves_the_teachers_as_they_are(
    predictor: Predictor, teachers: list[State]
):
    before = [hash_state(state) for state in teachers]
    for tensor in predictor.predict(teachers).values():
        tensor += 1
    assert [hash_state(state) for state in teachers] == before


def test_teachers_of_another_architecture_are_refused(
    predictor: Predictor, teachers: list[State]
):
    lacking = {k: v for k, v in teachers[1].items() if k != "conv2.weight"}
    message = "reads convnet,width=2, but teacher 2 has 'conv2.weight' missing where"
    with pytest.raises(InputError, match=message):
        predictor.predict([teachers[0], lacking])
    wider = {**teachers[0], "fc.weight": torch.zeros(3, 9)}
    message = r"teacher 1 has 'fc.weight' of shape \(3, 9\) where it needs \(3, 8\)"
    with pytest.raises(InputError, match=message):
        predictor.predict([wider])


def test_more_teachers_than_ids_are_refused(
    predictor: Predictor, teachers: list[State]
):
    with pytest.raises(InputError, match="reads 1 to 8 teachers, but got 9"):
        predictor.predict(teachers * 3)


def test_a_missing_predictor(tmp_path: Path):
    message = r"but .*wf.safetensors does not exist; .* metaensemble learn-weightformer"
    with pytest.raises(MissingFileError, match=message):
        load_predictor(tmp_path / "wf.safetensors")


@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_truncated_predictor(tmp_path: Path, predictor: Predictor, left: int):
    path = tmp_path / "wf.safetensors"
    save_predictor(path, predictor)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match="must be a whole safetensors file"):
        load_predictor(path)


def test_a_member_is_no_predictor(tmp_path: Path, make_member: Callable[..., Member]):
    member = make_member(tmp_path / "a.safetensors", 0)
    message = "--predictor must be a WeightFormer predictor, but .*a.safetensors is not"
    with pytest.raises(InputError, match=message):
        load_predictor(member.path)


def test_a_bare_state_dict_is_no_predictor(tmp_path: Path, teachers: list[State]):
    path = tmp_path / "a.safetensors"
    save_file(teachers[0], path)
    with pytest.raises(InputError, match="must be a WeightFormer predictor"):
        load_predictor(path)


def test_a_predictor_that_does_not_fit_its_record(tmp_path: Path, predictor: Predictor):
    path = tmp_path / "wf.safetensors"
    save_predictor(path, predictor)
    state, metadata = load_state(path)
    assert metadata is not None
    message = "must be a predictor of this version of metaensemble, but does not fit"
    save_state(path, {**state, "extra": torch.ones(1)}, metadata)
    with pytest.raises(InputError, match=message):
        load_predictor(path)
    save_state(path, state, {**metadata, "schema_version": 2})
    with pytest.raises(InputError, match=message):
        load_predictor(path)
    save_state(path, state, {**metadata, "spec": {"layers": [], "shapes": {}}})
    with pytest.raises(InputError, match=message):
        load_predictor(path)


def test_a_broken_predictor_with_odd_weights(tmp_path: Path, predictor: Predictor):
    path = tmp_path / "wf.safetensors"
    with torch.no_grad():
        predictor.network.cross[0] = torch.nan
    save_predictor(path, predictor)
    with pytest.raises(InputError, match="has NaN or infinity in 'cross'"):
        load_predictor(path)
