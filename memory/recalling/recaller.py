"""Recall: from a question to the memories that answer it.

1. What is there? The asker's shelves, the spaces of vectors, how rare the question's terms are: one statement.
2. The question's vector, where there is anything to compare it with.
3. Candidates by words and by nearness, weighed by both: one statement.
4. Ranked (`ranking.py`), the best looked at whole, with their neighbours: one statement.
5. A reranker, if there is one, then diversity, then the number that was asked for.

What always holds: every statement names the org and the shelves that the asker sees, and what is over, not valid now
or not of the kinds asked for is left out by Postgres. Nothing is set on a connection. Where the embedder or the
reranker is down or slow, recall goes on without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import asyncpg
import orjson
import structlog

from kernel.postgres import Pool
from memory.checks import checked_limit, clipped
from memory.embedders.port import Embedder
from memory.errors import EmbedderUnavailable, MemoryUnavailable
from memory.patience import in_time
from memory.port import ALL
from memory.recalling import ranking
from memory.recalling.arms import SQL, Candidate, Details, Search, Sight, candidates, details
from memory.recalling.diversity import diverse
from memory.recalling.question import Question
from memory.records import Filter, RecalledItem, Scope, ScopeKind
from memory.rerankers.port import Reranker, RerankerUnavailable

log = structlog.get_logger(__name__)

MOST_SHELVES: Final = 500
"""Shelves that a recall over a whole org looks at: its largest."""

_SCOPES: Final[tuple[ScopeKind, ...]] = ("org", "user", "agent", "session")
_DEPTH: Final = 60  # candidates of each arm
_DEEPER: Final = 8  # times as many where most were not valid
_LOOKED_AT: Final = 30  # of the ranked, for the reranker and for diversity
_WITH_NEIGHBOURS: Final = 10


@dataclass(frozen=True, slots=True)
class _Prospects:
    """What there is to search."""

    shelves: Mapping[int, int]
    scopes: Mapping[int, ScopeKind]
    spaces: Sequence[tuple[int, str, int, bool]]  # id, model, dimensions, whether it serves
    memories: int
    having: Mapping[int, int]


class Recaller:
    """Recalls from Postgres.

    Args:
        previous: embedders of models whose vectors are being replaced, by the names of the models.
        patience: seconds that a statement is waited for.
        embedder_patience: seconds that recall waits for the question's vectors; an answer's first word waits with it.
        reranker_patience: the same for the reranker.
    """

    def __init__(
        self,
        pool: Pool,
        embedder: Embedder,
        *,
        previous: Mapping[str, Embedder] | None = None,
        reranker: Reranker | None = None,
        patience: float = 5.0,
        embedder_patience: float = 2.0,
        reranker_patience: float = 2.0,
    ) -> None:
        self._pool = pool
        self._embedders = {**(previous or {}), embedder.model: embedder}
        self._own = embedder.model
        self._reranker = reranker
        self._patience = patience
        self._embedder_patience = embedder_patience
        self._reranker_patience = reranker_patience

    async def recall(
        self, scope: Scope, query: str, *, limit: int = 5, where: Filter = ALL, everyone: bool = False
    ) -> list[RecalledItem]:
        """See `Memory.recall`.

        Raises:
            InvalidInput: `limit` is out of range.
            MemoryUnavailable: Postgres is away, or too slow.
        """
        checked_limit(limit)
        query = clipped(query)
        if not query:
            return []
        question = Question(query)
        prospects = await self._prospects(scope, question, where, everyone)
        if not any(prospects.shelves.values()):
            return []
        sights = await self._sights(prospects, query, scope)
        rated = question.rated(prospects.memories, prospects.having, prospects.shelves)
        if rated is None and not sights:
            return []
        search = Search(scope.org_id, prospects.shelves, rated, sights, where)
        try:
            return await self._found(search, prospects, query, limit)
        except MemoryUnavailable as error:
            if not isinstance(error.__cause__, asyncpg.UndefinedTableError):
                raise
            # The table of a space that was retired just now: what replaced it is there.
            log.info("recall_again", org_id=scope.org_id)
            prospects = await self._prospects(scope, question, where, everyone)
            search = Search(scope.org_id, prospects.shelves, rated, await self._sights(prospects, query, scope), where)
            return await self._found(search, prospects, query, limit)

    async def _prospects(self, scope: Scope, question: Question, where: Filter, everyone: bool) -> _Prospects:
        wanted = [name for name in _SCOPES if not where.scopes or name in where.scopes]
        terms = list(map(str, question.numbers))
        async with in_time(self._patience):
            if everyone:
                rows = await self._pool.fetch(SQL.prospects_of_all, scope.org_id, wanted, MOST_SHELVES, terms)
            else:
                owners = {"org": "", "user": scope.user_id, "agent": scope.agent_id, "session": scope.session_id}
                seen = [name for name in wanted if owners[name] is not None]
                rows = await self._pool.fetch(SQL.prospects, scope.org_id, seen, [owners[name] for name in seen], terms)
        return _Prospects(
            shelves={row["id"]: row["amount"] for row in rows if row["what"] == "shelf" and row["amount"] > 0},
            scopes={row["id"]: row["name"] for row in rows if row["what"] == "shelf"},
            spaces=[
                (row["id"], row["name"], row["amount"], row["state"] == "serving")
                for row in rows
                if row["what"] == "space"
            ],
            memories=next((row["amount"] for row in rows if row["what"] == "total"), 0),
            having={row["id"]: row["amount"] for row in rows if row["what"] == "term"},
        )

    async def _sights(self, prospects: _Prospects, query: str, scope: Scope) -> list[Sight]:
        """The question's vectors: in the space of this process' model, and in the one that still serves."""
        asked = [
            (number, dimensions, self._embedders[model])
            for number, model, dimensions, serves in prospects.spaces
            if model in self._embedders and (serves or model == self._own)
        ]
        sights = await asyncio.gather(*(self._sight(*each, query, scope) for each in asked))
        return [sight for sight in sights if sight is not None]

    async def _sight(self, space: int, dimensions: int, embedder: Embedder, query: str, scope: Scope) -> Sight | None:
        try:
            async with asyncio.timeout(self._embedder_patience):
                [vector] = await embedder.embed([query])
        except (EmbedderUnavailable, TimeoutError) as error:
            log.warning("recall_without_vector", org_id=scope.org_id, model=embedder.model, reason=str(error) or "slow")
            return None
        if len(vector) != dimensions or not any(vector):
            return None  # of a space of other lengths of the same model; or nothing is known by it
        nearness = embedder.nearness
        return Sight(space, orjson.dumps(vector).decode(), nearness.floor, nearness.weight)

    async def _found(self, search: Search, prospects: _Prospects, query: str, limit: int) -> list[RecalledItem]:
        depth = max(_DEPTH, 3 * limit)
        async with in_time(self._patience):
            pool, left_out = await candidates(self._pool, search, depth, within=False)
            if left_out and len(pool) < limit:
                pool, _ = await candidates(self._pool, search, _DEEPER * depth, within=True)
        now, lowered = datetime.now(UTC), query.casefold()
        weight = max((sight.weight for sight in search.sights), default=0.0)
        pool = [each for each in pool if ranking.relevant(each)]
        if not pool:
            return []

        def ranked(all_of_them: Sequence[Candidate], most: int) -> list[Candidate]:
            ranking.fuse(all_of_them, weight)
            ranking.spread(all_of_them)
            ranking.boost(all_of_them, query=lowered, scopes=prospects.scopes, now=now)
            return ranking.best(all_of_them, most=most)

        looked_at = max(_LOOKED_AT, limit)
        first = ranked(pool, looked_at)
        beside = [each for each in first if each.thread is not None][:_WITH_NEIGHBOURS]
        async with in_time(self._patience):
            about, neighbours = await details(self._pool, search, [each.no for each in first], beside)
        known = {each.no for each in pool}
        pool += [each for each in neighbours if each.no not in known]
        chosen = [each for each in ranked(pool, len(pool)) if each.no in about][:looked_at]
        scores = await self._reranked(query, chosen, about)
        chosen.sort(key=lambda each: -scores[each.no])
        items = diverse(chosen, score=lambda each: scores[each.no], terms=lambda each: about[each.no].terms, most=limit)
        return _items(items, about, prospects.scopes, weight)

    async def _reranked(
        self, query: str, chosen: Sequence[Candidate], about: Mapping[int, Details]
    ) -> dict[int, float]:
        """Scores by memory: the reranker's where there is one and it answers, else what we have."""
        scores = {each.no: each.score for each in chosen}
        if self._reranker is None or len(chosen) < 2:
            return scores
        try:
            async with asyncio.timeout(self._reranker_patience):
                found = await self._reranker.rerank(query, [about[each.no].row["text"] for each in chosen])
        except (RerankerUnavailable, TimeoutError) as error:
            log.warning("recall_without_reranker", reason=str(error) or "too slow")
            return scores
        # The order is the reranker's; what it puts last is still an answer, or it would not be here.
        low, high = min(found), max(found)
        width = (high - low) or 1.0
        return {each.no: 0.1 + 0.9 * (score - low) / width for each, score in zip(chosen, found, strict=True)}


def _items(
    items: Sequence[tuple[Candidate, float]],
    about: Mapping[int, Details],
    scopes: Mapping[int, ScopeKind],
    weight: float,
) -> list[RecalledItem]:
    if not items:
        return []
    top, best = items[0]
    # How far the best one is from all that could be: of the others the share of that.
    level = min(1.0, max(min(top.words, 1.0), (min(top.words, 1.0) + weight * top.near) / (1 + weight), 0.01))
    found: list[RecalledItem] = []
    for each, score in items:
        row = about[each.no].row
        found.append(
            RecalledItem(
                id=row["id"],
                text=row["text"],
                kind=row["kind"],
                score=max(1e-6, min(1.0, level * score / best)),
                created_at=row["created_at"],
                scope=scopes[row["shelf"]],
                source=row["source"],
                provenance=row["provenance"],
                confidence=row["confidence"],
                valid_from=row["valid_from"],
                document_id=row["document_id"],
                page=row["page"],
                thread=row["thread"],
                place=row["place"],
                metadata=about[each.no].metadata,
            )
        )
    return found
