"""Documents made for tests: PDFs byte by byte, DOCX by the library, archives that do harm."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Sequence

import docx
from docx.document import Document as WordDocument
from pypdf import PdfReader, PdfWriter

Line = tuple[str, int]
"""A line and the size of its type."""


def pdf(*pages: Sequence[Line]) -> bytes:
    """A PDF with these lines on its pages. Characters beyond Latin-1 are set in a font with a map to Unicode."""
    wide = sorted({character for page in pages for text, _ in page for character in text if ord(character) > 255})
    objects = [b"", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"]
    codes = b"\n".join(b"<%04x> <%04x>" % (place + 1, ord(character)) for place, character in enumerate(wide))
    to_unicode = (
        b"/CIDInit /ProcSet findresource begin begincmap /CMapName /X def 1 begincodespacerange <0000> <ffff> "
        b"endcodespacerange %d beginbfchar\n%s\nendbfchar endcmap end" % (len(wide), codes)
    )
    objects.append(
        b"<< /Type /Font /Subtype /Type0 /BaseFont /Song /Encoding /Identity-H /DescendantFonts [5 0 R] "
        b"/ToUnicode 6 0 R >>"
    )
    objects.append(
        b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Song /DW 1000 "
        b"/CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> >>"
    )
    objects.append(_stream(to_unicode))
    kids = []
    for page in pages:
        content = b"BT\n"
        for row, (text, size) in enumerate(page):
            font, shown = (
                b"F1",
                b"(" + text.encode("latin-1", "replace").replace(b"(", b"\\(").replace(b")", b"\\)") + b")",
            )
            if any(character in wide for character in text):
                font = b"F2"
                shown = b"<" + b"".join(b"%04x" % (wide.index(character) + 1) for character in text) + b">"
            content += b"/%s %d Tf 1 0 0 1 50 %d Tm %s Tj\n" % (font, size, 780 - 24 * row, shown)
        objects.append(_stream(content + b"ET"))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R /F2 4 0 R >> >> >>" % len(objects)
        )
        kids.append(b"%d 0 R" % len(objects))
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    return assembled(objects)


def assembled(objects: Sequence[bytes]) -> bytes:
    """A PDF of these objects, the first of which is the catalogue."""
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(out)


def packed(data: bytes, *, times: int = 1) -> bytes:
    """A stream that is compressed, `times` over."""
    for _ in range(times):
        data = zlib.compress(data, 9)
    names = b" ".join([b"/FlateDecode"] * times)
    return b"<< /Length %d /Filter [%s] >>\nstream\n%s\nendstream" % (len(data), names, data)


def encrypted(data: bytes, password: str, *, owner: str = "owner") -> bytes:
    """The same PDF, which opens with `password` only; with an empty one it opens for all."""
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(data)))
    writer.encrypt(password, owner, algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def word(fill: Callable[[WordDocument], object]) -> bytes:
    """A DOCX that `fill` has written."""
    document = docx.Document()
    fill(document)
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def with_entry(archive: bytes, name: str, data: bytes) -> bytes:
    """The archive with another entry, or another content of one."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if entry.filename != name:
                new.writestr(entry, old.read(entry))
        new.writestr(name, data)
    return out.getvalue()


def archive(**entries: bytes) -> bytes:
    """A ZIP archive; `__` in a name stands for a slash, `_` for a dot."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name.replace("__", "/").replace("_", "."), data)
    return out.getvalue()


def _stream(content: bytes) -> bytes:
    return b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content)
