import pytest
from pydantic import Field, ValidationError

from metaensemble.core.config import Config
from metaensemble.core.errors import InputError, MissingFileError


class Job(Config):
    """A config as commands have them."""

    epochs: int = Field(default=2, ge=1)
    """Passes over the images."""


def test_unknown_keys_are_errors():
    with pytest.raises(
        ValidationError, match=r"epoch\s+Extra inputs are not permitted"
    ):
        Job.model_validate({"epoch": 3})


def test_values_outside_their_range_are_errors():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Job(epochs=0)


def test_a_config_is_frozen():
    job = Job()
    with pytest.raises(ValidationError, match="frozen"):
        job.epochs = 3
    assert job.model_copy(update={"epochs": 3}) == Job(epochs=3)
    assert hash(job) == hash(Job())


def test_attribute_docstrings_become_help():
    assert Job.model_fields["epochs"].description == "Passes over the images."


def test_a_missing_file_is_an_input_error_and_a_file_error():
    error = MissingFileError("make it with: metaensemble teach")
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    assert isinstance(error, FileNotFoundError)
    assert str(error) == "make it with: metaensemble teach"
    assert str(MissingFileError()) == ""
