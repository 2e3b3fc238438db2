"""The method that chooses: what fits the members, cheap to dear, within a budget."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from metaensemble.core.method import Method

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|images)")


@dataclass(frozen=True)
class Budget:
    """What all candidates together may take: one of the two."""

    seconds: float | None = None
    images: int | None = None


class Auto(Method):
    """Try the methods that fit the members, and keep the best on validation.

    First those that only merge weights, then those that train, each from the best start
    so far, until the budget is spent. A candidate whose accuracy on validation is
    clearly (by two standard errors, paired by images) below the best one's is out. Of
    the others the student is the nearest to the ensemble, by KL on validation, which
    compares whole distributions, image by image, and so tells candidates apart where a
    few hundred labels cannot. The best member is a candidate, too; where it is within
    one standard error of the nearest, the answer is "do not bother".
    """

    summary: ClassVar[str] = (
        "tries what fits the members, cheap to dear, and keeps the best on validation"
    )
    paper: ClassVar[str] = "-"
    needs: ClassVar[tuple[str, ...]] = ("images", "labels (validation)")
    cost: ClassVar[str] = "the budget"

    name: Literal["auto"] = "auto"
    """The method's name."""
    budget: str = "10m"
    """Of all candidates together: time, such as 90s, 10m or 2h, or the images that
    trainings see, such as 50000images, which gives the same result on any machine."""
    within: float = Field(default=0.01, ge=0, le=1)
    """By how much accuracy the student may be below the ensemble, before the advice is
    to keep the ensemble."""

    @field_validator("budget")
    @classmethod
    def _parsed(cls, text: str) -> str:
        match = _BUDGET.fullmatch(text)
        if not match or float(match[1]) <= 0:
            raise ValueError(
                "a budget must be a number above 0 and s, m, h or images, such as "
                f"10m or 50000images, but is {text!r}; change it"
            )
        return text

    @property
    def limit(self) -> Budget:
        """Return the budget."""
        match = _BUDGET.fullmatch(self.budget)
        assert match
        number, unit = float(match[1]), match[2]
        if unit == "images":
            return Budget(images=int(number))
        return Budget(seconds=number * _UNITS[unit])
