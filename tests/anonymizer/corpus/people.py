"""Invented patients in many scripts; none of them exists."""

# ruff: noqa: E501 - a category reads better with its content on one line
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    """``pieces`` are the spellings that must not survive anywhere."""

    pid: str
    name: str
    pieces: tuple[str, ...]
    charset: str | list[str] = "ISO_IR 192"
    accession: str = ""
    hospital: str = "St. Brannoc Infirmary"
    hospital_words: tuple[str, ...] = ("Brannoc",)
    birth: str = "19511203"
    age: str = "067Y"
    study: str = "20190315"


PEOPLE = (
    Person("MRN-7730418", "Quennell^Tabitha^Rose", ("Quennell", "Tabitha"), "ISO_IR 100", "ACC4418823"),
    Person("55610982", "Zoltowski^Bartek", ("Zoltowski", "Bartek"), "", "A-90077123", "Larkmoor General Hospital", ("Larkmoor",)),
    Person("PX00918273", "O'Dwyer^Fionnuala", ("Dwyer", "Fionnuala"), "ISO_IR 192", "77120934"),
    Person("4410-22-7781", "Grünwäldchen^Jörg", ("Grünwäldchen", "Jörg", "Gruenwaeldchen"), "ISO_IR 100", "FR20190001", "Klinikum Hasselbrück", ("Hasselbr",)),
    Person("JP-552213", "Yamazaki^Tarokichi=山崎^太郎吉=やまざき^たろうきち", ("Yamazaki", "Tarokichi", "山崎", "太郎吉", "やまざき"), ["", "ISO 2022 IR 87"], "JX118822", "北里第三病院", ("北里第三",)),
    Person("KR-771239", "Hwangbo^Gildong=皇甫^吉洞=황보^길동", ("Hwangbo", "Gildong", "황보", "길동"), ["", "ISO 2022 IR 149"], "KX662211"),
    Person("CN-661902", "Ouyang^XiaoDong=欧阳^小东", ("Ouyang", "XiaoDong", "欧阳", "小东"), "GB18030", "CX339120"),
    Person("RU-881230", "Люксембург^Аполлинария", ("Люксембург", "Аполлинария"), "ISO_IR 144", "RX110983"),
    Person("GR-118273", "Παπαδιαμάντης^Διονύσιος", ("Παπαδιαμάντης", "Διονύσιος"), "ISO_IR 126", "GX551209"),
    Person("UTF-99120", "Þórarinsdóttir^Ísafold", ("Þórarinsdóttir", "Ísafold"), "ISO_IR 192", "IX771230"),
    Person("90017765", "van der Zeeuwsche^Wilhelmina", ("Zeeuwsche", "Wilhelmina"), "ISO_IR 192", "NL-55120", age="094Y", birth="19250102"),
    Person("HX-20117", "Young^Faith", ("Young^Faith", "Faith Young", "Young, Faith"), "ISO_IR 100", "YF-330912"),
)  # fmt: skip
