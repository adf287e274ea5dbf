"""Tells which marks found in a picture can identify nobody, so that a side marker, a scale or a rib survives."""

from __future__ import annotations

import re

from anonymizer.pixels.ocr import TextRegion

# Laterality, view and position words radiographers place on the film, technique values and units of scale bars.
_WORDS = {
    "l", "r", "left", "right", "lt", "rt", "li", "re", "ap", "pa", "lat", "lateral", "obl", "oblique", "cc", "mlo", "ml", "lm",
    "rcc", "lcc", "rmlo", "lmlo", "xccl", "portable", "supine", "erect", "upright", "sitting", "decub", "decubitus", "prone",
    "a", "p", "h", "f", "s", "i", "hf", "fh", "ant", "post", "sup", "inf", "cranial", "caudal",
    "mi", "ti", "tis", "tib", "tic", "db", "hz", "mhz", "khz", "fps", "gain", "depth", "dr", "kv", "kvp", "ma", "mas", "ms",
    "cm", "mm", "m/s", "cm/s", "w", "ww", "wl", "c", "z", "zoom", "fov", "sl", "thk", "res", "pen", "gen", "thi", "2d", "3d",
    "b", "m", "pw", "cw", "cf", "prf", "wf", "map", "harm", "im", "img", "se", "mag", "x", "of", "dist",
    "area", "vol", "hr", "bpm", "fr", "gn", "hgen", "freq", "mmhg", "pmed", "med", "no", "stat", "scout", "1m", "2m",
    "sag", "sagittal", "cor", "coronal", "ax", "axial", "trans", "transverse", "trv", "lao", "rao", "pre", "contrast",
    "arterial", "venous", "delayed", "native", "flair", "dwi", "adc", "stir", "pd", "bone", "lung", "soft", "tissue", "window",
    "kidney", "liver", "spleen", "breast", "bladder", "aorta", "heart", "chest", "thorax", "abdomen", "pelvis", "brain", "skull",
    "spine", "knee", "shoulder", "hip", "ankle", "wrist", "elbow", "uterus", "ovary", "prostate", "thyroid", "gallbladder",
    "pancreas", "cm2", "cm3", "mmol", "sec", "min", "deg",
}  # fmt: skip
_NUMBER = re.compile(
    r"(?:x|se|im|img|t|c|p|g|fr|gn|w|l|ww|wl)?[-+]?\d{1,3}(?:[.,]\d{1,2})?(?:cm|mm|m/s|cm/s|mhz|khz|hz|db|fps|%|kv|kvp|mas|ma|ms|bpm|x|m)?"
)
_SPLIT = re.compile(r"[\s:=/()\[\],;*\-]+")
SURE = 0.75  # below this confidence what was read is not trusted, and the mark is covered
LINE = 2.5  # elongation from which an unread region is taken for a line of text ...
LINE_PIXELS = (6, 48)  # ... when it is this thick: thinner is a wire or an edge, thicker is anatomy


def can_identify(region: TextRegion) -> bool:
    """Whether the region must be covered: readable text that is not known to be harmless, or an unreadable line of it."""
    if is_benign(region.text, region.confidence):
        return False
    characters = sum(character.isalnum() for character in region.text)
    if (characters >= 3 and region.confidence >= 0.5) or (characters == 2 and region.confidence >= 0.8):
        return True
    return region.elongation >= LINE and LINE_PIXELS[0] <= region.thickness <= LINE_PIXELS[1]


def is_readable(region: TextRegion) -> bool:
    """Whether words were read that are not known to be harmless: a cover's edge or a wire is none."""
    characters = sum(character.isalnum() for character in region.text)
    return characters >= 3 and region.confidence >= 0.6 and not is_benign(region.text, region.confidence)


def is_benign(text: str, confidence: float) -> bool:
    """True when every word of ``text`` is a known technical mark or a short number, read with confidence.

    Digits that could spell an identifier or a date (four or more in all) are never benign.
    """
    if confidence < SURE or sum(character.isdigit() for character in text) > 5:
        return False
    words = [word for word in _SPLIT.split(text.casefold()) if word]
    if not words or re.search(r"\d{4,}|\d+[./-]\d+[./-]\d+", text):
        return False
    return all(_known(word) or _NUMBER.fullmatch(word) or _run_together(word) for word in words)


def _known(word: str) -> bool:
    """Whether a word is a technical mark, also where an I was read as an l ("Tls")."""
    return word in _WORDS or word.replace("l", "i") in _WORDS


def _run_together(word: str) -> bool:
    """Whether a word is technical marks and decimals that were read without their blanks: "MI0.9TIs0.4"."""
    parts = re.findall(r"[a-z]+|\d{1,3}(?:\.\d{1,2})?", word)
    marks = [part for part in parts if part.isalpha()]
    return "".join(parts) == word and "." in word and len(marks) < len(parts) and all(map(_known, marks))
