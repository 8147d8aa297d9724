"""Each format as passages, and what is refused: every file is read in a process of its own."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from docx.document import Document as WordDocument

from memory.documents.formats import LOOK, charset_of, format_of
from memory.documents.parsing import ParserLimits, Reading, read_document
from memory.documents.refusals import DocumentRefused
from tests.documents import made

SENTENCE = "The quarterly report of the harbour office lists every ship that came in. "
CHINESE = "深圳港的季度报告列出了所有入港的船只，并说明了它们的载重和目的地。"


async def read(name: str, data: bytes, media_type: str = "", **limits: Any) -> Reading:
    kind = format_of(name, media_type, data[:LOOK])
    return await read_document(data, kind, charset_of(media_type), ParserLimits(**limits))


async def refused(code: str, name: str, data: bytes, media_type: str = "", **limits: Any) -> str:
    """Why this document is refused."""
    with pytest.raises(DocumentRefused) as caught:
        await read(name, data, media_type, **limits)
    assert caught.value.code == code, caught.value.message
    return caught.value.message


async def test_plain_text_is_cut_between_paragraphs() -> None:
    paragraphs = [f"Paragraph {number}. {SENTENCE * 5}".strip() for number in range(12)]
    reading = await read("a.txt", "\n\n".join(paragraphs).encode())
    assert len(reading.passages) > 3
    assert "\n\n".join(passage.text for passage in reading.passages) == "\n\n".join(paragraphs)
    assert all(len(passage.text) <= 1_500 for passage in reading.passages)
    assert reading.facts["encoding"] == "utf-8"


async def test_a_long_paragraph_is_cut_between_sentences() -> None:
    reading = await read("a.txt", "".join(f"{number}: {SENTENCE}" for number in range(80)).encode())
    assert len(reading.passages) > 3
    assert all(passage.text.endswith(".") and len(passage.text) <= 1_500 for passage in reading.passages)


async def test_chinese_is_cut_between_sentences_and_weighs_twice() -> None:
    reading = await read("a.txt", "".join(f"{number}、{CHINESE}" for number in range(100)).encode())
    assert all(passage.text.endswith("。") and len(passage.text) <= 760 for passage in reading.passages)


async def test_text_without_any_border_is_cut_all_the_same() -> None:
    reading = await read("a.txt", b"x" * 200_000)
    assert max(len(passage.text) for passage in reading.passages) <= 1_500


async def test_headings_of_markdown_are_the_context_of_what_stands_below() -> None:
    text = "# Handbook\n\nHello.\n\n## Leave\n\nThirty days.\n\n### Sick leave\n\nTell us.\n\n## Pay\n\nMonthly."
    reading = await read("a.md", text.encode())
    assert [(passage.context, passage.text) for passage in reading.passages] == [
        ("Handbook", "Hello."),
        ("Handbook > Leave", "Thirty days."),
        ("Handbook > Leave > Sick leave", "Tell us."),
        ("Handbook > Pay", "Monthly."),
    ]
    assert reading.facts["title"] == "Handbook"


async def test_a_heading_without_anything_below_is_found_too() -> None:
    reading = await read("a.md", b"# Rules\n\n## No smoking\n\n## No dogs\n\nNot even small ones.")
    assert [(passage.context, passage.text) for passage in reading.passages] == [
        ("Rules", "No smoking"),
        ("Rules > No dogs", "Not even small ones."),
    ]


async def test_code_stays_whole() -> None:
    code = "\n".join(f"line {number} of the program" for number in range(90))
    reading = await read("a.md", f"# Code\n\n{SENTENCE * 12}\n\n```python\n{code}\n```\n\n{SENTENCE * 12}".encode())
    [passage] = [passage for passage in reading.passages if "line 0" in passage.text]
    assert passage.text == f"```python\n{code}\n```"


async def test_each_piece_of_a_table_has_its_header() -> None:
    rows = "\n".join(f"| ship {number} | {number * 10} tons |" for number in range(200))
    reading = await read("a.md", f"# Ships\n\n| name | load |\n| --- | --- |\n{rows}\n".encode())
    assert len(reading.passages) > 3
    for passage in reading.passages:
        assert passage.text.count("| name | load |") >= 1
        assert passage.text.startswith("| name | load |\n| --- | --- |\n| ship ")


async def test_a_list_stays_together() -> None:
    items = "\n".join(f"- item {number}\n  - below it" for number in range(20))
    reading = await read("a.md", f"{SENTENCE * 10}\n\n{items}\n\n{SENTENCE * 10}".encode())
    assert sum("item 0" in passage.text and "item 19" in passage.text for passage in reading.passages) == 1


async def test_html_is_read_without_what_is_around_the_matter() -> None:
    page = """<!doctype html><html><head><title>Port news</title><style>x{}</style></head><body><nav>Home</nav>
    <h1>Ships</h1><p>Ten ships <b>came</b> in.<script>alert(1)</script></p><ul><li>Anna<ul><li>red</ul><li>Bella</ul>
    <table><tr><th>ship<th>tons<tr><td>Anna<td>10<tr><td>Bella<td>20</table><pre>a = 1
  b = 2</pre><div hidden>secret</div><footer>Imprint</footer>"""
    reading = await read("a.html", page.encode())
    [passage] = reading.passages
    assert passage.context == "Ships"
    assert passage.text == (
        "Ten ships came in.\n\n- Anna\n  - red\n- Bella\n\nship | tons\nAnna | 10\nBella | 20\n\na = 1\n  b = 2"
    )
    assert reading.facts["title"] == "Port news"


async def test_the_encoding_that_html_names_is_used() -> None:
    page = f'<html><head><meta charset="gb2312"></head><body><p>{CHINESE}</p></body></html>'
    reading = await read("a.html", page.encode("gb18030"))
    assert reading.passages[0].text == CHINESE
    assert reading.facts["encoding"] == "gb18030"


async def test_rows_of_csv_say_what_their_cells_are() -> None:
    rows = "\n".join(f'{number};"Ship; {number}";{number * 10}' for number in range(100))
    reading = await read("ships.csv", f"no;name;tons\n{rows}\n".encode())
    assert reading.passages[0].text.startswith("no: 0; name: Ship; 0; tons: 0\nno: 1; name: Ship; 1; tons: 10\n")
    assert reading.facts["rows"] == 100
    assert reading.facts["columns"] == ["no", "name", "tons"]


async def test_csv_without_a_header_and_tsv_are_read() -> None:
    assert (await read("a.csv", b"1,Anna\n2,Bella\n")).passages[0].text == "1 | Anna\n2 | Bella"
    assert (await read("a.tsv", b"name\tage\nAnna\t7\n")).passages[0].text == "name: Anna; age: 7"


async def test_a_pdf_has_pages_headings_and_whole_paragraphs() -> None:
    first = [("Harbour rules", 24), ("Ships have to an-", 11), ("nounce themselves a day", 11), ("before.", 11)]
    second = [("Fees", 18), ("A ship pays by its load.", 11)]
    reading = await read("a.pdf", made.pdf(first, second))
    assert [(passage.page, passage.context, passage.text) for passage in reading.passages] == [
        (1, "Harbour rules", "Ships have to announce themselves a day before."),
        (2, "Harbour rules > Fees", "A ship pays by its load."),
    ]
    assert reading.facts["pages"] == 2


async def test_a_chinese_pdf_is_read() -> None:
    reading = await read("a.pdf", made.pdf([("港口规则", 20), ("所有船只须提前一天", 11), ("申报。", 11)]))
    [passage] = reading.passages
    assert (passage.context, passage.text) == ("港口规则", "所有船只须提前一天申报。")


async def test_running_heads_and_page_numbers_are_left_out() -> None:
    pages = [[("Port of Example", 9), (f"Matter {n} {SENTENCE * 2}", 11), (f"Page {n} of 6", 9)] for n in range(6)]
    texts = " ".join(passage.text for passage in (await read("a.pdf", made.pdf(*pages))).passages)
    assert "Port of Example" not in texts
    assert "Page" not in texts
    assert all(f"Matter {n}" in texts for n in range(6))


async def test_a_pdf_that_only_forbids_printing_is_read() -> None:
    data = made.encrypted(made.pdf([("Open to all readers", 11)]), "")
    assert (await read("a.pdf", data)).passages[0].text == "Open to all readers"


async def test_docx_has_headings_lists_tables_and_no_deleted_text() -> None:
    def fill(document: WordDocument) -> None:
        document.add_heading("Handbook", 0)
        document.add_heading("Leave", 1)
        document.add_paragraph("Thirty days.")
        document.add_paragraph("in summer", style="List Bullet")
        document.add_paragraph("in winter", style="List Bullet")
        table = document.add_table(rows=2, cols=2)
        for cell, text in zip([*table.rows[0].cells, *table.rows[1].cells], ("who", "days", "all", "30"), strict=True):
            cell.text = text
        document.add_heading("Pay", 1)
        document.add_paragraph("每月发放。")

    reading = await read("a.docx", made.word(fill))
    assert [(passage.context, passage.text) for passage in reading.passages] == [
        ("Handbook > Leave", "Thirty days.\n\n- in summer\n- in winter\n\nwho | days\nall | 30"),
        ("Handbook > Pay", "每月发放。"),
    ]


@pytest.mark.parametrize(
    ("encoding", "mark"), [("utf-16", b""), ("utf-8-sig", b""), ("utf-32", b""), ("gb18030", b""), ("big5", b"")]
)
async def test_text_in_other_encodings_is_read(encoding: str, mark: bytes) -> None:
    text = "港口的季度報告列出了所有入港的船隻，並說明了它們的載重和目的地。各船應提前一天申報，並按載重繳費。"
    reading = await read("a.txt", text.encode(encoding))
    assert reading.passages[0].text == text


async def test_the_encoding_that_the_caller_names_is_used() -> None:
    reading = await read("a.txt", "日本語の短い文".encode("shift_jis"), "text/plain; charset=Shift_JIS")
    assert reading.passages[0].text == "日本語の短い文"


async def test_equal_passages_are_there_once() -> None:
    reading = await read("a.md", b"# A\n\nSame.\n\n# B\n\nSame.\n\n# C\n\nOther.")
    assert [passage.text for passage in reading.passages] == ["Same.", "Other."]


async def test_an_insertion_leaves_the_passages_further_on_as_they_were() -> None:
    lines = [f"{number},ship number {number},{number * 7} tons of load" for number in range(2_000)]
    before = await read("a.csv", "\n".join(["no,name,load", *lines]).encode())
    after = await read("a.csv", "\n".join(["no,name,load", "x,a new ship,9 tons", *lines]).encode())
    same = {passage.text for passage in before.passages} & {passage.text for passage in after.passages}
    assert len(same) > 0.9 * len(before.passages)


# What is refused.


@pytest.mark.parametrize(
    ("code", "name", "data"),
    [
        ("empty", "a.txt", b""),
        ("empty", "a.md", b"  \n\n \n"),
        ("empty", "a.csv", b",,\n,,\n"),
        ("empty", "a.html", b"<html><body><script>x</script></body></html>"),
        ("binary", "a.txt", bytes(range(256)) * 20),
        ("binary", "a.csv", b"a,b\n\x00\x01,2\n"),
        ("binary", "late.txt", b"text " * 2_000 + b"\x00"),
        ("unsupported_type", "a.exe", b"MZ\x90\x00"),
        ("unsupported_type", "a.xlsx", b"PK\x03\x04"),
        ("unsupported_type", "a.png", b"\x89PNG\r\n"),
        ("unsupported_type", "a.txt", b"\x89PNG\r\n\x1a\n"),
        ("unsupported_type", "a.json", b"{}"),
        ("encrypted", "a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)),
        ("wrong_type", "a.pdf", b"just text"),
        ("wrong_type", "a.txt", b"%PDF-1.7\n"),
        ("wrong_type", "a.docx", b"%PDF-1.7\n"),
        ("malformed", "a.pdf", b"%PDF-1.7\n" + b"garbage " * 500),
        ("malformed", "a.docx", b"PK\x03\x04" + b"garbage " * 500),
        ("unsupported_type", "a.docx", made.archive(xl__workbook_xml=b"<x/>")),
        ("malformed", "a.csv", b'a,b\n1,"' + b"x" * 200_000),
    ],
)
async def test_what_is_no_document_is_refused_with_the_reason(code: str, name: str, data: bytes) -> None:
    await refused(code, name, data)


async def test_text_whose_encoding_is_not_what_is_said_is_refused() -> None:
    message = await refused("wrong_encoding", "a.txt", CHINESE.encode("gb18030"), "text/plain; charset=utf-8")
    assert "utf-8" in message
    await refused("wrong_encoding", "a.txt", b"text", "text/plain; charset=klingon")
    await refused("wrong_encoding", "a.txt", b"dGV4dA==", "text/plain; charset=base64")
    await refused("wrong_encoding", "a.txt", b"not packed at all", "text/plain; charset=zlib")


async def test_text_whose_encoding_cannot_be_told_is_refused() -> None:
    await refused("wrong_encoding", "a.txt", b"caf\xe9")
    await refused(
        "wrong_encoding", "a.txt", "Ça coûte très cher à l'été, où l'on préfère être à l'ombre.".encode("latin-1")
    )
    await refused("wrong_encoding", "a.txt", b"good utf-8 and then \xff\xfe\xfa\x81\x9d\x8f " * 3)


async def test_a_pdf_with_a_password_is_refused() -> None:
    message = await refused("encrypted", "a.pdf", made.encrypted(made.pdf([("secret", 11)]), "password"))
    assert "secret" not in message


async def test_a_scan_is_refused() -> None:
    assert "OCR" not in await refused("no_text", "a.pdf", made.pdf([], []))


async def test_a_pdf_whose_pages_go_in_a_circle_is_refused() -> None:
    circle = made.assembled([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 2 >>"])
    with pytest.raises(DocumentRefused):
        await read("a.pdf", circle, cpu_seconds=3, seconds=20)


async def test_a_stream_that_unpacks_without_end_is_refused() -> None:
    bomb = made.assembled(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources << >> >>",
            made.packed(bytes(300_000_000), times=2),
        ]
    )
    assert len(bomb) < 10_000
    with pytest.raises(DocumentRefused):
        await read("a.pdf", bomb, cpu_seconds=10)


async def test_zip_bombs_are_refused_before_they_are_unpacked() -> None:
    good = made.word(lambda document: document.add_paragraph("Hello"))
    assert "packed" in await refused("bomb", "a.docx", made.with_entry(good, "word/media/a.bin", bytes(50_000_000)))
    await refused("bomb", "a.docx", made.with_entry(good, "word/document.xml", b" " * 70_000_000))
    many = made.archive(**{f"n{number}": b"" for number in range(6_000)})
    await refused("bomb", "a.docx", many)


async def test_entities_that_multiply_come_to_nothing() -> None:
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    xml = f"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">{levels}]>
    <w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>&l9;</w:t>
    </w:r></w:p></w:body></w:document>"""
    good = made.word(lambda document: document.add_paragraph("Hello"))
    with pytest.raises(DocumentRefused):
        await read("a.docx", made.with_entry(good, "word/document.xml", xml.encode()), cpu_seconds=10)


async def test_files_of_the_machine_are_not_read_through_entities() -> None:
    xml = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>
    <w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r>
    <w:t>before &f; after</w:t></w:r></w:p></w:body></w:document>"""
    good = made.word(lambda document: document.add_paragraph("Hello"))
    try:
        reading = await read("a.docx", made.with_entry(good, "word/document.xml", xml))
    except DocumentRefused:
        return
    assert "root:" not in json.dumps([passage.text for passage in reading.passages])


async def test_what_takes_too_long_or_too_much_is_ended() -> None:
    deep = b"<div>" * 400_000 + b"text"
    with pytest.raises(DocumentRefused):
        await read("a.html", deep, cpu_seconds=2, seconds=10)
    assert "memory" in await refused("too_costly", "a.html", b"<p>x</p>" * 2_000_000, memory_bytes=300_000_000)
    assert "longer than" in await refused("too_costly", "a.md", b"a\n\n" * 3_000_000, seconds=0.5)


async def test_more_text_than_is_kept_is_refused() -> None:
    await refused("too_long", "a.txt", "\n\n".join(f"{n} {SENTENCE * 15}" for n in range(3)).encode(), passages=2)
    await refused("too_long", "a.txt", SENTENCE.encode() * 100, characters=700)


async def test_the_reader_has_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_SECRET_KEY", "not for readers")
    from memory.documents import parsing

    async with parsing._child() as process:
        environment = await asyncio.to_thread(Path(f"/proc/{process.pid}/environ").read_bytes)
    assert b"not for readers" not in environment


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.html", "a.csv"])
async def test_damaged_documents_are_read_or_refused(name: str) -> None:
    chance = random.Random(name)
    whole = {
        "a.pdf": made.pdf([("Harbour rules", 20), (SENTENCE, 11)], [("港口规则", 11)]),
        "a.docx": made.word(lambda document: document.add_paragraph(SENTENCE)),
        "a.html": b"<html><h1>a</h1><table><tr><td>x<td>y</table><ul><li>z</ul><p>text",
        "a.csv": b'name,load\n"Anna, red",10\nBella,20\n',
    }[name]
    for _ in range(5):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            place = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place : place + chance.randint(1, 20)]
                case _:
                    data[place:place] = data[place : place + 40] * chance.randint(1, 30)
        try:
            reading = await read(name, bytes(data))
        except DocumentRefused:
            continue
        assert reading.passages
