"""The rows of the study: methods and what differs from their defaults."""

from typing import Any

BUDGET = 90_000
"""Images: what training one member takes (20 epochs of its 4,500)."""
IMAGES = 49_000
"""Labelled and unlabelled images to distil on."""

ROWS: dict[str, dict[str, Any]] = {
    "best_member": {"name": "best_member"},
    "kd": {"name": "kd"},
    "kd-scratch": {"name": "kd", "start": "scratch"},
    "kd-t4": {"name": "kd", "temperature": 4.0},
    "kd-tdiv": {"name": "kd", "temperature": 4.0, "perturbation": "tdiv_sdiv"},
    "kd-confods": {"name": "kd", "temperature": 4.0, "perturbation": "confods"},
    "dkd": {"name": "dkd"},
    "fitnet": {"name": "fitnet"},
    "at": {"name": "at"},
    "sp": {"name": "sp"},
    "cc": {"name": "cc"},
    "rkd": {"name": "rkd"},
    "vid": {"name": "vid"},
    "ft": {"name": "ft"},
    "irg": {"name": "irg"},
    "crd": {"name": "crd"},
    "latent": {"name": "latent_ensemble"},
    "latent-tdiv": {"name": "latent_ensemble", "perturbation": "tdiv_sdiv"},
    "meal": {"name": "meal"},
    "meal_v2": {"name": "meal_v2"},
    "srm": {"name": "srm"},
    "ensemble_distribution": {"name": "ensemble_distribution"},
    "blockwise": {"name": "blockwise"},
}
"""By key: the method's name and hyperparameters; budget and views are run.py's."""
