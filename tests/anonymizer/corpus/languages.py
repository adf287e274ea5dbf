"""A second look at free text: other languages, dates in words, names in disguise, national numbers, and more words to keep."""

# ruff: noqa: E501 - a phrase reads better on one line, in its own script
from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from tests.anonymizer.corpus.generate import base, encoded, privacy, retention, standing
from tests.anonymizer.corpus.key import Case, gone, keeps, lacks
from tests.anonymizer.corpus.people import PEOPLE

Phrase = tuple[str, tuple[str, ...], tuple[str, ...]]  # the text, what must be gone, what must still be there

PHRASES: dict[str, tuple[Phrase, ...]] = {
    "date in other languages": (
        ("CT 15 marzec 2019 ok", ("marzec",), ("ok",)), ("CT 15. března 2019 ok", ("března",), ("ok",)), ("КТ 15 березня 2019 ok", ("березня",), ("ok",)),
        ("КТ 15 март 2019 ok", ("15 март 2019",), ("ok",)), ("BT 15 Mart 2019 ok", ("15 Mart",), ("ok",)), ("CT 2019. március 15. ok", ("március",), ("ok",)),
        ("TT 15. maaliskuuta 2019 ok", ("maaliskuuta",), ("ok",)), ("CT 15. marts 2019 ok", ("marts",), ("ok",)), ("CT 15 Μαρτίου 2019 ok", ("Μαρτίου",), ("ok",)),
        ("CT ١٥ مارس ٢٠١٩ ok", ("مارس",), ("ok",)), ("CT 15 มีนาคม 2562 ok", ("มีนาคม",), ("ok",)), ("CT 15 מרץ 2019 ok", ("מרץ",), ("ok",)),
        ("CT 二〇一九年三月十五日 ok", ("三月十五日",), ("ok",)), ("CT 民國108年3月15日 ok", ("民國108", "3月15日"), ("ok",)), ("CT 3月15日 ok", ("3月15日",), ("ok",)),
        ("CT 15 févr. 2019 ok", ("févr",), ("ok",)), ("TAC 15 ago 2019 ok", ("15 ago",), ("ok",)), ("CT ngày 15 tháng 3 năm 2019 ok", ("tháng 3",), ("ok",)),
        ("CT 15.III.2019 ok", ("15.III.2019",), ("ok",)), ("CT 15-III-19 ok", ("15-III-19",), ("ok",)),
    ),
    "date in words": (
        ("seen on the fifteenth of March 2019, stable", ("fifteenth", "March 2019"), ("seen", "stable")),
        ("March first, two thousand nineteen: stable", ("March first", "nineteen"), ("stable",)),
        ("fifteen March twenty nineteen, stable", ("fifteen", "twenty nineteen"), ("stable",)),
        ("March 15, two thousand and nineteen, stable", ("two thousand",), ("stable",)),
        ("on the twenty-first of January 2019 stable", ("twenty-first",), ("stable",)),
        ("am fünfzehnten März 2019 stabil", ("fünfzehnten",), ("stabil",)), ("quinze mars deux mille dix-neuf, stable", ("quinze", "mille"), ("stable",)),
        ("quince de marzo de dos mil diecinueve, estable", ("quince", "dos mil"), ("estable",)),
        ("two march fractures, second view, first pass, three phase", (), ("two march fractures, second view, first pass, three phase",)),
    ),
    "date written short": (
        ("exam 190315 ok", ("190315",), ("exam", "ok")), ("exam 15/03 ok", ("15/03",), ("ok",)), ("exam 15.03. ok", ("15.03",), ("ok",)), ("seen on 3/14 ok", ("3/14",), ("ok",)),
        ("prior 11-2018 ok", ("11-2018",), ("ok",)), ("prior 03.2019 ok", ("03.2019",), ("ok",)), ("week 11 2019 ok", ("week 11 2019",), ("ok",)), ("2019-W11-5 ok", ("W11",), ("ok",)),
        ("series 20190315102213 ok", ("20190315",), ("ok", "102213")), ("on 3/4 view, 1/2 dose, ratio 12/30", (), ("3/4 view, 1/2 dose, ratio 12/30",)),
    ),
    "birth in words": (
        ("né le 3 décembre 1951 ok", ("1951",), ("ok",)), ("nata il 3 dicembre 1951 ok", ("1951",), ("ok",)), ("ur. 3 grudnia 1951 ok", ("grudnia 1951",), ("ok",)),
        ("the third of December nineteen fifty-one ok", ("fifty-one",), ("ok",)), ("3 Aralık 1951 ok", ("Aralık",), ("ok",)), ("昭和26年12月3日生", ("12月3日",), ()),
    ),
    "people in other languages": (
        ("患者: 佐藤花子", ("佐藤", "花子"), ()), ("送诊医生：李伟 头颅CT", ("李伟",), ("头颅CT",)), ("김철수 교수 흉부", ("김철수",), ("흉부",)), ('ד"ר כהן CT', ("כהן",), ("CT",)),
        ("د. محمد أحمد CT", ("محمد",), ("CT",)), ("Δρ. Παπαδόπουλος CT", ("Παπαδόπουλος",), ("CT",)), ("Пан Ковальчук, КТ", ("Ковальчук",), ("КТ",)),
        ("Überweiser: Dr. Schmidt, Knie", ("Schmidt",), ("Knie",)), ("Médecin traitant: Dr Lefèvre, genou", ("Lefèvre",), ("genou",)), ("compte rendu par le Pr Dubois", ("Dubois",), ("rendu",)),
        ("Dott.ssa Bianchi, ginocchio", ("Bianchi",), ("ginocchio",)), ("Paciente: Pérez Gómez, María. Rodilla", ("Pérez", "Gómez", "María"), ("Rodilla",)),
        ("Dhr. Jansen, knie", ("Jansen",), ("knie",)), ("Hr. Sørensen, knæ", ("Sørensen",), ("knæ",)),
    ),
    "people in fields": (
        ("RADIOLOGIST - Nguyen, Thi", ("Nguyen", "Thi"), ("RADIOLOGIST",)), ("Ref MD: ABDULLAH", ("ABDULLAH",), ("Ref",)), ("user jsmith knee", ("jsmith",), ("knee",)),
        ("<name>Ravensworth</name> knee", ("Ravensworth",), ("knee",)), ('{"operator":"Ravensworth","kv":120}', ("Ravensworth",), ("120",)), ("operator=Ravensworth;kv=120", ("Ravensworth",), ("kv=120",)),
        ("RAVENSWORTH IDA, KNEE 2 VIEWS", ("RAVENSWORTH", "IDA"), ("KNEE", "VIEWS")), ("[Operator] Ravensworth", ("Ravensworth",), ("Operator",)), ("DrRavensworth knee", ("Ravensworth",), ("knee",)),
    ),
    "own name in disguise": (
        ("Quen\u200bnell knee", ("Quen\u200bnell", "nell"), ("knee",)), ("Quen\u00adnell knee", ("nell",), ("knee",)), ("Ｑｕｅｎｎｅｌｌ knee", ("Ｑｕｅｎｎｅｌｌ",), ("knee",)),
        ("Qu\u0435nnell knee", ("Qu\u0435nnell",), ("knee",)), ("Quennell%20Tabitha knee", ("Quennell", "Tabitha"), ("knee",)), ("Quen-\nnell knee", ("Quen", "nell"), ("knee",)),
        ("UXVlbm5lbGxeVGFiaXRoYQ== knee", ("UXVlbm5lbGx",), ("knee",)), ("5175656e6e656c6c knee", ("5175656e",), ("knee",)), ("Quennel1 knee", ("Quennel1",), ("knee",)),
        ("𝐐𝐮𝐞𝐧𝐧𝐞𝐥𝐥 knee", ("𝐐𝐮𝐞𝐧𝐧𝐞𝐥𝐥",), ("knee",)), ("quennelltabitha2019 knee", ("quennell", "tabitha"), ("knee",)), ("<PatientName>Quennell^Tabitha</PatientName>", ("Quennell", "Tabitha"), ()),
    ),
    "national numbers": (
        ("INSEE 1 51 12 75 108 123 45 ok", ("108 123",), ("ok",)), ("license plate B-MW 1234 ok", ("MW 1234",), ("ok",)), ("CPF 123.456.789-09 ok", ("123.456",), ("ok",)),
        ("AHV 756.1234.5678.97 ok", ("1234.5678",), ("ok",)), ("Medicare 1EG4-TE5-MK73 ok", ("TE5-MK73",), ("ok",)), ("NHS 943 476 5919 ok", ("943 476",), ("ok",)), ("BSN 111222333 ok", ("111222333",), ("ok",)),
    ),
    "age in other words": (
        ("92 jaar ok", ("92",), ("ok",)), ("a nonagenarian, ok", ("nonagenarian",), ("ok",)), ("92yM ok", ("92",), ("ok",)), ("M/92 ok", ("92",), ("ok",)), ("92/M ok", ("92",), ("ok",)),
        ("95th birthday ok", ("95",), ("ok",)), ("edad 93 ok", ("93",), ("ok",)), ("92 let ok", ("92",), ("ok",)), ("Tc-99m MDP, 99mTc-MAA, In-113m, 94 mm", (), ("Tc-99m", "99mTc-MAA", "In-113m", "94 mm")),
    ),
}  # fmt: skip
CLINICAL = (
    "Mycobacterium avium complex", "Chiari I malformation; Osler nodes; Janeway lesions", "Brodie abscess; Pott disease; Pott puffy tumor", "Sinding-Larsen-Johansson", "Joubert; Lhermitte-Duclos; Cowden; Gorlin; Li-Fraumeni",
    "Spigelian hernia; Richter hernia; Bochdalek; Morgagni", "Segond fracture; Tillaux; Bennett fracture; Rolando fracture", "Freiberg infraction; Kienbock; Kohler disease; Sever disease; Panner disease",
    "Erdheim-Chester; Langerhans; Castleman disease; Rosai-Dorfman", "Bosniak IIF; Weigert-Meyer; Goodpasture; Wegener; Churg-Strauss", "Hampton hump; Westermark sign; Swyer-James; Macleod",
    "Eisenmenger; Ebstein anomaly; Kommerell diverticulum; Ortner", "May-Thurner; Paget-Schroetter; Leriche", "Mirizzi; Caroli; Todani; Bouveret; Rigler; Chilaiditi; Ogilvie; Hirschsprung",
    "Wernicke; Korsakoff; Creutzfeldt-Jakob; Binswanger; Pick disease; Lewy body; Friedreich", "Meckel cave; Dorello canal; Monro; Luschka; Magendie", "Tornwaldt cyst; Ludwig angina; Lemierre; Warthin; Stensen; Wharton",
    "Modic type 2; Pfirrmann grade IV; Meyerding grade 1; Baastrup; Bertolotti", "Weber B; Lauge-Hansen; Garden III; Pauwels; Neer; Schatzker; Gustilo", "Rosenberg view; Harris view; Velpeau; Zanca; Lauenstein; Dunn view; Brewerton; Holmblad",
    "Edwards valve; Zimmer plate; Abbott; Jackson table; Wilson frame; Stryker frame; Thomas splint; Mayfield clamp", "Sunday; Monday morning; Christmas disease; Rose Bengal; India ink",
    "KOPF NATIV; SCHAEDEL CT; HWS seitlich; Becken; Knie re. ap", "Abdomen KM venös; Leber dynamisch; Prostata mpMRT; Mamma bds.", "TDM abdomino-pelvienne; IRM cérébrale; échographie", "RM cerebral sin contraste; Mamografía bilateral",
    "КТ органов грудной клетки; МРТ головного мозга", "頭部単純CT; 胸部造影; 腹部MRI", "胸部CT平扫; 头颅MRI增强", "흉부 CT; 뇌 MRI", "Ax FIESTA-C; 3D SPGR; LAVA+C; SSFSE; PROPELLER; CUBE; MERGE; 3DASL",
    "Rb-82; N-13; sestamibi; MAG3; DMSA; I-131; In-111; Tl-201; I-123 MIBG", "T2N1M0; pT3N2; ypT0; ECOG 1; KPS 90", "b 1000; 12 of 24; frame 3 of 20; image 112/240", "GA 32w4d; G2P1; POD 3; 6 mo f/u",
)  # fmt: skip


def cases(start: int) -> Iterator[Case]:
    """One file for each phrase; clinical phrases must come through whole."""
    numbers = count(start + 1)
    person = PEOPLE[0]
    for category, phrases in PHRASES.items():
        for text, go, stay in phrases:
            ds = base(person, next(numbers), pixels=False)
            ds.SpecificCharacterSet = "ISO_IR 192"
            ds.ImageComments = text
            judges = (lacks(w, "ImageComments") if len(w) < 6 and w[0].isdigit() else gone(w) for w in go)
            checks = privacy(category, *judges) + retention(category, *(keeps(w, "ImageComments") for w in stay))
            yield Case(f"{category}: {text}", encoded(ds), [*standing(person), *checks])
    for text in CLINICAL:
        ds = base(person, next(numbers), pixels=False)
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.ImageComments = text
        judge = keeps(text.replace(";", " "), "ImageComments")
        yield Case(f"clinical: {text}", encoded(ds), retention("more clinical phrases", judge))
