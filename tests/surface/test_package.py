import subprocess
import sys

import pytest

import metaensemble as me

LISTED = ["Fused", "evaluate", "export_model", "fuse", "load_data", "load_ensemble"]


def test_importing_the_package_imports_no_torch():
    code = "import metaensemble, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", LISTED)
def test_public_names_load_on_first_use(name):
    assert getattr(me, name).__name__ == name


@pytest.mark.parametrize("name", ["methods", "merging"])
def test_public_modules_load_on_first_use(name):
    module = getattr(me, name)
    assert module.__name__ == f"metaensemble.{name}"
    assert all(hasattr(module, public) for public in module.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'fuze'"):
        _ = me.fuze
