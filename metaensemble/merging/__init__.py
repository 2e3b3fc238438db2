"""Mergers: members' weights in, one network's weights out, without training."""

from metaensemble.merging.aligned_soup import AlignedSoup
from metaensemble.merging.best_member import BestMember
from metaensemble.merging.contract import Bench, Judged, Merged, Merger
from metaensemble.merging.greedy_soup import GreedySoup
from metaensemble.merging.learned_soup import LearnedSoup
from metaensemble.merging.ot_fusion import OtFusion
from metaensemble.merging.regression_merge import RegressionMerge
from metaensemble.merging.repair import Repair
from metaensemble.merging.soup import Soup, uniform_soup

__all__ = [
    "AlignedSoup",
    "Bench",
    "BestMember",
    "GreedySoup",
    "Judged",
    "LearnedSoup",
    "Merged",
    "Merger",
    "OtFusion",
    "RegressionMerge",
    "Repair",
    "Soup",
    "uniform_soup",
]
