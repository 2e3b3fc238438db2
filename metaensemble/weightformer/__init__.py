"""WeightFormer: a Transformer that reads N networks' weights and writes one network's.

Fei et al. 2022, "Meta-Ensemble Parameter Learning" (arXiv 2210.01973), and beyond.
"""

from metaensemble.weightformer.config import MERGED, WeightFormerConfig
from metaensemble.weightformer.evidence import Evidence, gather_evidence
from metaensemble.weightformer.network import WeightFormer
from metaensemble.weightformer.predictor import (
    Predictor,
    PredictorInfo,
    complete_state,
    load_predictor,
    save_predictor,
)
from metaensemble.weightformer.tokens import TokenSpec, read_tokens, write_tokens
from metaensemble.weightformer.trace import derive_token_spec

__all__ = [
    "MERGED",
    "Evidence",
    "Predictor",
    "PredictorInfo",
    "TokenSpec",
    "WeightFormer",
    "WeightFormerConfig",
    "complete_state",
    "derive_token_spec",
    "gather_evidence",
    "load_predictor",
    "read_tokens",
    "save_predictor",
    "write_tokens",
]
