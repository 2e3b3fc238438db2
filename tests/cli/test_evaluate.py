"""What evaluate tells."""

import json
from pathlib import Path


def test_evaluate_tells_each_model_and_the_ensemble(cli, zoo):
    done = cli(f"evaluate {zoo} --data digits --limit-train 60 --json e.json --quiet")
    assert done.status == 0
    assert "ensemble of 5" in done.out
    value = json.loads(Path("e.json").read_text())
    assert value["schema"] == 1
    assert len(value["models"]) == 5
    assert value["ensemble"]["test"]["count"] == 897
    assert 0 <= value["disagreement"] <= 1


def test_evaluate_one_model(cli, zoo):
    done = cli(f"evaluate {zoo / '0.safetensors'} --data digits --quiet")
    assert done.status == 0
    assert "ensemble" not in done.out


def test_evaluate_diagnoses_several_models(cli, zoo):
    line = f"evaluate {zoo} --data digits --limit-train 60 --json e.json"
    done = cli(line)
    value = json.loads(Path("e.json").read_text())
    assert value["diagnosis"]["verdict"] in done.err.splitlines()
    done = cli(f"evaluate {zoo / '0.safetensors'} --data digits --json one.json")
    assert "diagnosis" not in json.loads(Path("one.json").read_text())
    assert done.err == ""
