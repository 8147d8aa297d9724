"""How near unrelated texts are in a model: measured once, on sentences that have nothing to do with each other."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from memory.embedders.port import Nearness

# Each is about something of its own. Two languages, questions and statements, as queries and memories are.
UNRELATED = (
    "The ferry to the island leaves at noon on weekdays.",
    "How do I sharpen a kitchen knife?",
    "Her invoice for March has not been paid yet.",
    "The choir rehearses Bach in the old church.",
    "用户对花生过敏。",
    "这个星期的服务器备份失败了。",
    "哪一座山是欧洲最高的？",
    "Wolves returned to the valley after eighty years.",
)


def measured(vectors: Sequence[Sequence[float]]) -> Nearness:
    """How to read cosines of a model that makes these unit vectors of `UNRELATED`.

    The floor is the cosine that two unrelated texts hardly exceed: above it is about one pair in 4,000, if cosines are
    normal.
    """
    cosines = [
        math.fsum(a * b for a, b in zip(one, other, strict=True)) for one, other in itertools.combinations(vectors, 2)
    ]
    floor = min(max(statistics.fmean(cosines) + 3.5 * statistics.pstdev(cosines), 0.0), 0.95)
    return Nearness(floor=floor, weight=1.0)
