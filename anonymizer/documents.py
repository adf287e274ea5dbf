"""Replaces encapsulated documents and models, which nobody can prove clean by empty ones (action D of Table E.1-1)."""

from __future__ import annotations

DOCUMENT, DOCUMENT_LENGTH = 0x00420011, 0x00420015
_NOTICE = "Removed in de-identification"


def placeholder(document: bytes) -> bytes:
    """A document of one page (PDF), one title (CDA, other XML), no triangle (STL) or one comment (OBJ, MTL, other text).

    What is none of these gives way to the model without triangles, which is nothing but zeros.
    """
    if b"%PDF-" in document[:1024]:
        return _pdf()
    if document.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \r\n\t")[:1] == b"<":
        root = b"ClinicalDocument" in document
        return _cda() if root else f'<?xml version="1.0"?><removed>{_NOTICE}</removed>'.encode()
    if document[:5].lower() == b"solid" and b"facet" in document[:4096]:
        return b"solid removed\nendsolid removed\n"
    words = document[:4096].rstrip(b"\0 ")
    if words and all(byte >= 32 or byte in b"\t\r\n" for byte in words):
        return f"# {_NOTICE}\n".encode()
    return bytes(84)


def _pdf() -> bytes:
    """A PDF (ISO 32000) of one page that says the document was removed."""
    text = f"BT /F1 12 Tf 72 720 Td ({_NOTICE}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>\nstream\n%s\nendstream" % (len(text), text),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    return (
        out + head + table + b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(out))
    )


def _cda() -> bytes:
    """An HL7 CDA document with nothing but its title."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ClinicalDocument xmlns="urn:hl7-org:v3">'
        f"<title>{_NOTICE}</title></ClinicalDocument>"
    ).encode()
