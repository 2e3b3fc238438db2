import pytest
import torch
from pydantic import ValidationError

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError
from metaensemble.models import Architecture, build, describe_architectures
from metaensemble.models.architecture import BUILTINS


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("resnet20", {}),
        ("resnet20,width=2", {"width": 2}),
        ("resnet20,width=2.0", {"width": 2.0}),
        ("resnet20,shortcut=B,width=1e-05", {"shortcut": "B", "width": 1e-5}),
        ("mlp,batchnorm=true,depth=3", {"batchnorm": True, "depth": 3}),
        ("a.b:factory,flag=false,path=x/y:z", {"flag": False, "path": "x/y:z"}),
        ("net,level=-1,name=inf", {"level": -1, "name": "inf"}),
    ],
)
def test_text_round_trip(text: str, fields: dict[str, object]):
    architecture = Architecture.parse(text)
    assert str(architecture) == text
    assert architecture.fields == fields
    for key, value in fields.items():
        assert type(architecture.fields[key]) is type(value)
    again = Architecture.model_validate_json(architecture.model_dump_json())
    assert again == architecture
    assert str(again) == text


def test_text_is_canonical():
    text = " mlp , width = 08 , depth=1,batchnorm=false"
    assert str(Architecture.parse(text)) == "mlp,batchnorm=false,depth=1,width=8"
    architecture = Architecture(name="mlp", fields={"width": 8, "depth": 1})
    assert str(architecture) == "mlp,depth=1,width=8"


def test_a_config_accepts_the_text():
    class Job(Config):
        architecture: Architecture

    job = Job.model_validate({"architecture": "mlp,depth=1"})
    assert job.architecture == Architecture(name="mlp", fields={"depth": 1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2", "must be spellable as name,key=value, but 'mlp' with {'width': '2'}"),
        ("true", "must be spellable as name,key=value"),
        (" x", "must be spellable as name,key=value"),
        ("a,b", "must be key=value, but 'b'"),
        ("a=b", "must be key=value, but 'width=a=b'"),
        ("", "must be key=value, but 'width='"),
    ],
)
def test_fields_that_no_text_could_spell_are_refused(value: str, message: str):
    with pytest.raises(ValidationError, match=message):
        Architecture(name="mlp", fields={"width": value})


def test_names_that_no_text_could_spell_are_refused():
    for name in ("", "a=b"):
        with pytest.raises(ValidationError, match="must start with its name"):
            Architecture(name=name)
    with pytest.raises(ValidationError, match="must be spellable"):
        Architecture(name=" mlp")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must start with its name, but '' does not"),
        ("width=2", "must start with its name, but 'width=2' does not"),
        ("resnet20,width", "must be key=value, but 'width' in 'resnet20,width' is not"),
        ("resnet20,width=", "must be key=value, but 'width='"),
        ("resnet20,=2", "must be key=value, but '=2'"),
        ("resnet20,width=2=3", "must be key=value, but 'width=2=3'"),
        ("resnet20,", "must be key=value, but ''"),
        ("resnet20,my width=2", "must be key=value, but 'my width=2'"),
        ("mlp,width=2,width=3", "given once, but .* has 'width' twice"),
    ],
)
def test_malformed_text(text: str, message: str):
    with pytest.raises(InputError, match=message):
        Architecture.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "resnet21",
            "'resnet21' is neither; did you mean .*resnet20.*built-in are mlp,",
        ),
        ("zzz", "'zzz' is neither; built-in are mlp, .*; write zzz:FACTORY for one in"),
        ("nets.own.net", "'nets.own.net' is neither; did you mean nets.own:net"),
        ("resnet20,widht=2", "resnet20 has no field 'widht'; .* width=1.0, shortcut=A"),
        ("resnet20,classes=2", "resnet20 has no field 'classes'"),
        ("resnet20,depth=8", "resnet20 has no field 'depth'"),
        (
            "resnet20,width=big",
            "'width' of resnet20 should be a valid number, but is 'b",
        ),
        ("resnet20,width=0", "'width' of resnet20 should be greater than 0, but is 0"),
        ("resnet20,shortcut=C", "should be 'A' or 'B', but is 'C'; its fields are"),
        ("mlp,width=1.5", "'width' of mlp should be a valid integer, but is 1.5"),
        ("mlp,batchnorm=1", "should be a valid boolean, but is 1; .* batchnorm=false"),
        ("mlp,depth=-1", "'depth' of mlp should be greater than or equal to 0"),
        ("mlp,width=65537", "'width' of mlp should be less than or equal to 65536"),
        (f"mlp,width=1{'0' * 400}", "should be less than or equal to 65536"),
        (f"mlp,width=1{'0' * 9999}", "should be a valid integer"),
        (f"resnet20,width=1{'0' * 400}", "'width' of resnet20 should be"),
        ("resnet20,width=65", "'width' of resnet20 should be less than or equal to 64"),
        ("wrn28_1,dropout=1", "'dropout' of wrn28_1 should be less than 1, but is 1"),
    ],
)
def test_unknown_names_and_fields(text: str, message: str):
    with pytest.raises(InputError, match=message):
        build(text, 10, (3, 32, 32))


def test_at_least_two_classes():
    with pytest.raises(InputError, match="at least 2 classes, but there are 1"):
        build("mlp", 1, (1, 8, 8))


def test_input_shape_must_be_positive():
    with pytest.raises(
        InputError, match=r"\(channels, height, width\), .* \(1, 0, 8\)"
    ):
        build("mlp", 2, (1, 0, 8))


def test_description_names_every_network_and_field():
    lines = describe_architectures().splitlines()
    assert [line.split()[0] for line in lines] == list(BUILTINS)
    by_name = {line.split()[0]: line for line in lines}
    assert "Fields: width=1.0, shortcut=A|B" in by_name["resnet20"]
    assert "arXiv 1512.03385" in by_name["resnet20"]
    assert "patch=32, dim=768, depth=12, heads=12" in by_name["vit_b_32"]


def test_fields_override_a_networks_defaults():
    model = build("vit_small_32x32,patch=8,dim=24,depth=1", 3, (3, 32, 32))
    assert model.get_parameter("encoder.pos_embedding").shape == (1, 17, 24)
    assert torch.equal(model(torch.ones(1, 3, 32, 32)), torch.zeros(1, 3))
