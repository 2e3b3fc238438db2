"""The rows of the study: methods and what differs from their defaults."""

from typing import Any

IMAGES = 49_000
"""Labelled and unlabelled images to distil on."""
BUDGET = 45_000
"""Images that every method sees: half of what training one member takes."""
MEMBER = 90_000
"""Images of training one member: 20 epochs of its 4,500."""
COLUMNS = (
    "accuracy",
    "recovered",
    "agreement",
    "nll",
    "ece",
    "latency_ms",
    "train_images",
    "parameters",
    "macs",
)
"""Of the table; seconds were measured beside other work."""
WHOLE = {"epochs": MEMBER / IMAGES}

ROWS: dict[str, dict[str, Any]] = {
    "best_member": {"name": "best_member"},
    "kd-member": {"name": "kd", **WHOLE},
    "kd-member-scratch": {"name": "kd", "start": "scratch", **WHOLE},
    "kd-member-t4": {"name": "kd", "temperature": 4.0, **WHOLE},
    "kd": {"name": "kd"},
    "kd-t4": {"name": "kd", "temperature": 4.0},
    "kd-tdiv": {"name": "kd", "temperature": 4.0, "perturbation": "tdiv_sdiv"},
    "latent": {"name": "latent_ensemble"},
    "latent-tdiv": {"name": "latent_ensemble", "perturbation": "tdiv_sdiv"},
    "dkd": {"name": "dkd"},
    "fitnet": {"name": "fitnet"},
    "at": {"name": "at"},
    "sp": {"name": "sp"},
    "cc": {"name": "cc"},
    "rkd": {"name": "rkd"},
    "vid": {"name": "vid"},
    "ft": {"name": "ft", "paraphraser_epochs": 0.2, "epochs": BUDGET / IMAGES - 0.2},
    "irg": {"name": "irg"},
    "crd": {"name": "crd", "negatives": 2048},
    "meal": {"name": "meal"},
    "meal_v2": {"name": "meal_v2"},
    "srm": {
        "name": "srm",
        "dictionary_epochs": 0.1,
        "init_epochs": 0.3,
        "epochs": BUDGET / IMAGES - 0.4,
    },
    "blockwise": {"name": "blockwise"},
    "ensemble_distribution": {"name": "ensemble_distribution"},
}
"""By key: the method's name and hyperparameters; budget and views are run.py's."""
