"""The member that is best on validation: what every other method has to beat."""

from typing import ClassVar, Literal

from metaensemble.merging.contract import Bench, Merged, Merger
from metaensemble.teachers import Ensemble


class BestMember(Merger):
    """Keep the member with the highest validation accuracy (ties: the lower NLL)."""

    summary: ClassVar[str] = "keep the member that is best on validation"
    paper: ClassVar[str] = "-"
    needs: ClassVar[tuple[str, ...]] = ("labels (validation)",)
    stale_statistics: ClassVar[bool] = False

    name: Literal["best_member"] = "best_member"
    """The method's name."""

    def merge(self, members: Ensemble, bench: Bench) -> Merged:
        """Return the best member as it is."""
        candidates = (Merged(m.state(), m.info) for m in members.members)
        ranked = ((bench.judge(merged).measured, merged) for merged in candidates)
        return max(ranked, key=lambda item: (item[0].accuracy, -item[0].nll))[1]
