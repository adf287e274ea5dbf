"""Invented people: the patients, physicians and addresses the demo writes into its DICOM headers.

None of them exists. They are varied on purpose (accents, Japanese and Cyrillic names, several identifiers) because a
header in plain ASCII proves little about de-identification.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import date, timedelta


@dataclass(frozen=True)
class Locale:
    """Names and places of one country, with the Specific Character Set its scanners write (PS3.3 C.12.1.1.2)."""

    character_set: str | list[str]
    family: tuple[str, ...]
    given: tuple[str, ...]
    streets: tuple[str, ...]
    city: str
    phone: str
    id_format: str
    # Names carry their ideographic group after "=" (PS3.5 6.2.1); a phonetic group too would pass 64 bytes in ISO 2022.
    ideographic: bool = False


@dataclass(frozen=True)
class Person:
    """An invented patient. `name` is a DICOM person name (PN); dates are `date`s, `sex` is M, F or O."""

    name: str
    patient_id: str
    other_id: str
    birth_date: date
    sex: str
    address: str
    phone: str
    physician: str
    operator: str

    def words(self) -> list[str]:
        """The words of the patient's name, which nothing right of the wall may contain."""
        return [word for group in self.name.split("=") for word in group.split("^") if len(word) > 1]


GERMANY = Locale(
    "ISO_IR 100",
    ("Müller", "Schäfer", "Groß", "Kühn", "Weißmann", "von Ötzdorf", "Jäger", "Hölderlin", "Brösel"),
    ("Jürgen", "Käthe", "Zoë", "Björn", "Amélie", "Lukas", "Frieda", "Noël", "Mathilda"),
    ("Lindenauer Weg", "Rößlestraße", "Am Überfall", "Goethestraße"),
    "Neulindenau",
    "+49 30 5550",
    "LN{:07d}",
)
IRELAND = Locale(
    "ISO_IR 100",
    ("O'Brien", "Ní Dhomhnaill", "Mac Giolla", "Ó Súilleabháin", "Kavanagh", "de Búrca", "Fitzgerald-Walsh"),
    ("Seán", "Aoife", "Caoimhe", "Pádraig", "Róisín", "Tadhg", "Órla", "Niamh", "Éanna"),
    ("Sráid na Siopaí", "Harbour Road", "Quay Street", "Bóthar na Trá"),
    "Ballybrendan",
    "+353 1 555 0",
    "SB-{:06d}",
)
JAPAN = Locale(
    ["", "ISO 2022 IR 87"],
    ("Yamada=山田", "Sato=佐藤", "Watanabe=渡辺", "Kobayashi=小林", "Aoki=青木", "Ota=太田"),
    ("Hanako=花子", "Tarou=太郎", "Haruto=陽翔", "Yui=結衣", "Sakura=桜"),
    ("青空通り", "本町", "東山"),
    "青空市",
    "+81 3 5550 ",
    "{:08d}",
    ideographic=True,
)
UKRAINE = Locale(
    "ISO_IR 144",
    ("Шевченко", "Бондаренко", "Коваль", "Савчук", "Лисенко", "Мельник"),
    ("Олена", "Тарас", "Софія", "Богдан", "Марта", "Назар"),
    ("вулиця Березова", "проспект Миру", "площа Ринок"),
    "Березівка",
    "+380 44 555 0",
    "Б{:06d}",
)
FRANCE = Locale(
    "ISO_IR 192",
    ("Lefèvre", "Garçon", "d'Aubigné", "Œuvrard", "Benoît", "Nguyễn", "Çelik"),
    ("Chloé", "Maëlys", "François", "Anaïs", "Théo", "Gaëlle", "Loïc"),
    ("rue de l'Église", "allée des Érables", "place du Marché"),
    "Saint-Cyr-les-Bois",
    "+33 1 55 50 ",
    "SC{:08d}",
)


def invent(locale: Locale, number: int, study_date: date, rng: random.Random) -> Person:
    """An invented child of one to five years at `study_date`; `number` makes the identifiers unique at a hospital."""
    address = f"{rng.choice(locale.streets)} {rng.randint(1, 199)}, {locale.city}"
    return Person(
        name=_name(locale, rng),
        patient_id=locale.id_format.format(number),
        other_id=f"NHI-{rng.randint(10**8, 10**9 - 1)}",
        birth_date=study_date - timedelta(days=rng.randint(370, 5 * 365)),
        sex=rng.choices("MFO", weights=(49, 49, 2))[0],
        address=address,
        phone=f"{locale.phone}{rng.randint(100, 999)}",
        physician=_name(locale, rng),
        operator=_name(locale, rng),
    )


def _name(locale: Locale, rng: random.Random) -> str:
    family, given = rng.choice(locale.family), rng.choice(locale.given)
    if not locale.ideographic:
        return f"{family}^{given}"
    groups = zip(family.split("="), given.split("="), strict=True)
    return "=".join(f"{one}^{two}" for one, two in groups)
