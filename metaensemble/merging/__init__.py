"""Mergers: members' weights in, one network's weights out, without training."""

from metaensemble.merging.aligned_soup import AlignedSoup
from metaensemble.merging.best_member import BestMember
from metaensemble.merging.contract import Bench, Judged, Merged, Merger
from metaensemble.merging.soup import Soup, uniform_soup

__all__ = [
    "AlignedSoup",
    "Bench",
    "BestMember",
    "Judged",
    "Merged",
    "Merger",
    "Soup",
    "uniform_soup",
]
