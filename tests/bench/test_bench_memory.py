"""That the bench of memory runs, and that both arms of recall find no less than words alone."""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.memory.conversations import conversations
from bench.memory.documents import documents
from bench.memory.embedder import SyntheticEmbedder
from bench.memory.grammar import topics

_ONE_QUESTION = 1 / 24 + 1e-9  # the lexical embedder sees nothing new: it may cost one, or win one


async def measured(tmp_path: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """What it prints, and its figures."""
    figures = tmp_path / "figures.json"
    bench = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.memory", *arguments, "--json", str(figures)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await bench.communicate()
    assert bench.returncode == 0, output.decode()
    return output.decode(), json.loads(figures.read_bytes())


async def test_all_rows_are_measured_and_both_arms_find_no_less_than_words_alone(tmp_path: Path) -> None:
    output, figures = await measured(tmp_path, "--questions", "24", "--rows", "300")
    assert [group["title"].partition(":")[0] for group in figures["quality"]] == [
        *("conversations, en", "conversations, zh", "documents, en", "documents, zh")
    ]
    found = [{figure["name"]: figure["recall@10"] for figure in group["figures"]} for group in figures["quality"]]
    assert all(len(by_name) == 10 for by_name in found)
    by_words = sum(by_name["recall() by words alone"] for by_name in found)
    assert sum(by_name["recall(), synthetic embedder"] for by_name in found) >= by_words
    assert by_words >= sum(by_name["the text arm alone"] for by_name in found)
    assert sum(by_name["recall(), the lexical embedder"] for by_name in found) >= by_words - _ONE_QUESTION
    for by_name in found:
        assert by_name["the same, all vectors compared"] == by_name["the dense arm alone, synthetic"]
    lines = {line["label"]: line for row in figures["rows"] for line in row["lines"]}
    assert lines["rows of another org"]["verdict"] == "holds"
    assert lines["the dense arm: of the ten nearest by comparing all"]["verdict"] == "holds"
    for label in (
        "recall(), without the embedding call",
        "remember_all with 500 each",
        "CREATE INDEX of the graph",
    ):
        assert any(label in line for line in lines), label
        assert label in output


async def test_a_million_is_measured_the_same_way_as_some_hundred(tmp_path: Path) -> None:
    output, figures = await measured(tmp_path, "--million", "--rows", "800", "--orgs", "8")
    assert "memories of 8 orgs" in output
    lines = [line for row in figures["rows"] for line in row["lines"] if line["label"] == "rows of another org"]
    assert [line["verdict"] for line in lines] == ["holds", "holds"]


def test_a_corpus_is_the_same_each_time_and_its_answers_are_on_the_shelf_of_the_question() -> None:
    for corpus in (conversations("en", seed=5, questions=50), documents("zh", seed=5, questions=50)):
        again = (conversations if corpus.name == "conversations" else documents)(corpus.language, seed=5, questions=50)
        assert again == corpus
        assert len(corpus.questions) == 50
        for asked in corpus.questions:
            assert asked.answers
            assert max(asked.answers) < len(corpus.shelves[asked.shelf])


def test_all_corpora_together_have_1500_questions() -> None:
    made = [kind(language, seed=1) for kind in (conversations, documents) for language in ("en", "zh")]
    assert sum(len(corpus.questions) for corpus in made) >= 1500


def test_the_synthetic_embedder_sees_meaning_where_there_is_no_common_word() -> None:
    embedder = SyntheticEmbedder()
    classes = [
        words for topic in topics("conversations_en").values() for name, words in topic.words.items() if name == "a"
    ]
    alike = [embedder.vector(words[0]) @ embedder.vector(words[1]) for words in classes]
    unlike = [embedder.vector(one[0]) @ embedder.vector(other[1]) for one, other in pairwise(classes)]
    assert sum(alike) / len(alike) > 0.1 + sum(unlike) / len(unlike)
    assert embedder.vector(classes[0][0]).tolist() == embedder.vector(classes[0][0]).tolist()
