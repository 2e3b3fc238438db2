import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from metaensemble.core.errors import InputError
from metaensemble.models import Architecture, build

SOURCE = """
from torch import nn

def linear(classes, input_shape, scale=1):
    channels, height, width = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))

class Net(nn.Linear):
    def __init__(self, *, classes, size):
        super().__init__(size, classes)

def counted(num_classes, width=2):
    return nn.Linear(width, num_classes)

def takes_all(**arguments):
    module = nn.Identity()
    module.arguments = arguments
    return module

def fixed():
    return nn.Flatten()

def text(classes):
    return "a network"

constant = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "metaensemble_test_nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "own.py").write_text(SOURCE)
    (package / "needy.py").write_text("import metaensemble_test_absent")
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def own(text: str) -> nn.Module:
    return build(f"metaensemble_test_nets.own:{text}", 3, (1, 2, 2))


@pytest.mark.usefixtures("folder")
def test_factory_of_the_current_folder():
    before = list(sys.path)
    assert own("linear")(torch.ones(5, 1, 2, 2)).shape == (5, 3)
    assert own("linear,scale=2")(torch.ones(5, 1, 2, 2)).shape == (5, 3)
    assert own("Net,size=4")(torch.ones(5, 4)).shape == (5, 3)
    assert isinstance(own("fixed"), nn.Flatten)
    assert sys.path == before


@pytest.mark.usefixtures("folder")
def test_factory_gets_classes_shape_and_fields():
    got = own("takes_all,width=2,act=gelu").arguments
    assert got == {"classes": 3, "input_shape": (1, 2, 2), "width": 2, "act": "gelu"}


@pytest.mark.usefixtures("folder")
def test_factory_that_counts_its_classes_by_another_name():
    assert own("counted")(torch.ones(5, 2)).shape == (5, 3)
    assert own("counted,num_classes=4")(torch.ones(5, 2)).shape == (5, 4)


def test_only_import_paths_execute_foreign_code():
    assert Architecture.parse("a.b:c").is_import_path
    assert not Architecture.parse("resnet20,width=2").is_import_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "metaensemble_test_nets.no:f",
            "must be importable.*No module named.*run from",
        ),
        (
            "metaensemble_test_nets.needy:f",
            "No module named 'metaensemble_test_absent'",
        ),
        ("metaensemble_test_nets.own:no", "has no callable 'no'; name a class or"),
        ("metaensemble_test_nets.own:constant", "has no callable 'constant'"),
        ("metaensemble_test_nets/own.py:f", "must be package.module:factory, but is"),
        ("own.py:f", "name a module, not its file, but is 'own.py:f'; write own:f"),
        (":f", "must be package.module:factory, but is ':f'"),
        ("metaensemble_test_nets.own:", "must be package.module:factory, but is"),
        ("metaensemble_test_nets.own:text", "must return a torch.nn.Module, .* a str"),
        (
            "metaensemble_test_nets.own:linear,x=1",
            "no field 'x'; its fields are: scale",
        ),
        ("metaensemble_test_nets.own:linear,classes=2", "has no field 'classes'"),
        ("metaensemble_test_nets.own:fixed,x=1", "its fields are: none"),
        ("metaensemble_test_nets.own:Net", "missing a required argument: 'size'"),
    ],
)
def test_unusable_import_paths(path: str, message: str):
    with pytest.raises(InputError, match=message):
        build(path, 3, (1, 2, 2))
