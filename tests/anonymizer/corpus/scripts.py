"""Names in other scripts, repeated in free text in other spellings, orders, inflections and renderings."""

# ruff: noqa: E501 - a case reads better on one line
from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from tests.anonymizer.corpus.generate import base, encoded, privacy, retention
from tests.anonymizer.corpus.hiding import insert
from tests.anonymizer.corpus.key import Case, Judge, gone, keeps
from tests.anonymizer.corpus.people import PEOPLE

# (name, character set, texts, what must be gone of them, what must stay)
CASES: tuple[tuple[str, str | list[str], tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    ("Люксембург^Аполлинария", "ISO_IR 144", ("Lyuksemburg A., stable", "Luxemburg stable", "LIUKSEMBURG", "Apollinaria seen", "люксембурга осмотр"), ("ksemburg", "xemburg", "pollinari", "люксембург"), ("stable", "осмотр")),
    ("Щербаков^Юрий", "ISO_IR 192", ("Shcherbakov stable", "Yuri Scherbakov", "Щербакову стабильно", "Щербаковым", "Yuriy"), ("herbakov", "Щербаков", "Yuri"), ("stable", "стабильно")),
    ("Παπαδιαμάντης^Διονύσιος", "ISO_IR 126", ("Papadiamantis stable", "Dionysios", "ΠΑΠΑΔΙΑΜΑΝΤΗΣ"), ("Papadiam", "Dionysi", "ΠΑΠΑΔΙΑΜΑΝΤΗΣ"), ("stable",)),
    ("Grünwäldner^Jürgen", "ISO_IR 100", ("Gruenwaeldner Juergen stabil", "Grunwaldner Jurgen", "GRÜNWÄLDNER"), ("nwaeldner", "nwaldner", "rgen"), ("stabil",)),
    ("Gruenwaeldner^Juergen", "ISO_IR 192", ("Grünwäldner Jürgen stabil",), ("nwäldner", "rgen"), ("stabil",)),
    ("やまざき^たろうきち", "ISO_IR 192", ("ヤマザキ 再検", "ﾔﾏｻﾞｷ 再検"), ("ヤマザキ", "ﾔﾏｻﾞｷ"), ("再検",)),
    ("Yamazaki^Tarokichi=山崎^太郎吉=やまざき^たろうきち", ["", "ISO 2022 IR 87"], ("山崎太郎吉 肺炎", "太郎吉 再検", "山崎 太郎吉様", "ヤマザキ 異常なし"), ("山崎", "太郎吉", "ヤマザキ"), ("肺炎", "再検", "異常なし")),
    ("Kim^Yeonghui=金^英姬=김^영희", ["", "ISO 2022 IR 149"], ("이 환자 김영희 폐렴 이상 없음", "김 영희 폐렴", "영희 폐렴"), ("영희",), ("이 환자", "폐렴", "이상 없음")),
    ("Wang^XiaoDong=王^小东", "GB18030", ("王小东 肺炎", "小东 复查", "Xiaodong Wang", "Wang Xiao Dong", "国王 头部"), ("小东", "xiaodong", "Xiao Dong"), ("肺炎", "复查", "国王 头部")),
    ("Li^Bo", "", ("Li Bo stable", "Bo Li, liver", "Li-RADS 4"), ("Li Bo", "Bo Li"), ("stable", "liver", "Li-RADS 4")),
    ("D'Angelino^Maria Teresa", "", ("DAngelino", "D Angelino Maria", "Maria T. D'Angelino", "Teresa stable"), ("angelino", "Teresa"), ("stable",)),
    ("Nguyễn^Thị Minh", "ISO_IR 192", ("Nguyen Thi Minh", "NGUYEN seen", "nguyễn"), ("nguyen", "nguyễn"), ("seen",)),
    ("Al-Rashidi^Mohammed=الراشد^محمد", "ISO_IR 127", ("الراشد محمد سعال", "Al Rashidi", "AlRashidi"), ("الراشد", "Rashidi"), ("سعال",)),
    ("Šašićek^Čedomir", "ISO_IR 101", ("Sasicek Cedomir", "ŠAŠIĆEK seen"), ("sasicek", "Šašićek", "cedomir"), ("seen",)),
    ("כהנוביץ^דודו", "ISO_IR 138", ("כהנוביץ דודו שיעול",), ("כהנוביץ", "דודו"), ("שיעול",)),
    ("สมชาย^ใจดี", "ISO_IR 166", ("สมชาย ไอ", "ใจดี"), ("สมชาย", "ใจดี"), ("ไอ",)),
    ("Philips^Mary", "", ("Ms Philips seen", "Mary P.", "Philips called"), (), ("seen",)),
    ("White^Rose", "", ("White^Rose", "Mrs White; white matter lesion", "rose bengal, white cell scan"), ("White^Rose",), ("white matter lesion", "rose bengal", "white cell scan")),
    ("Parkinson^Hugo", "", ("Hodgkin lymphoma, Crohn disease",), (), ("Hodgkin lymphoma, Crohn disease",)),
)  # fmt: skip


# (declared character set, name, its encoding, text, its encoding): what was declared is not what was written
WRITTEN: tuple[tuple[str | list[str], str, str, str, str], ...] = (
    ("", "Müllerovski^Jörgen", "utf-8", "Müllerovski, 5 cm", "utf-8"),
    ("", "Müllerovski^Jörgen", "latin-1", "Müllerovski, 5 cm", "latin-1"),
    ("ISO_IR 192", "Müllerovski^Jörgen", "latin-1", "Müllerovski, 5 cm", "latin-1"),
    ("ISO_IR 100", "Müllerovski^Jörgen", "latin-1", "Müllerovski, 5 cm", "utf-8"),
    ("ISO_IR 144", "Люксембург^Иван", "iso8859-5", "Люксембург, 5 cm", "cp1251"),
    ("ISO_IR 144", "Люксембург^Иван", "iso8859-5", "Люксембург, 5 cm", "utf-8"),
    ("GB18030", "欧阳^小东", "gb18030", "欧阳小东, 5 cm", "utf-8"),
    (["", "ISO 2022 IR 58"], "欧阳^小东", "gb18030", "欧阳小东, 5 cm", "gb18030"),
    (["", "ISO 2022 IR 87"], "山田^太郎", "shift_jis", "山田太郎, 5 cm", "shift_jis"),
    (["", "ISO 2022 IR 87"], "山田^太郎", "iso2022_jp", "山田太郎, 5 cm", "euc_jp"),
    (["", "ISO 2022 IR 149"], "황보^길동", "euc_kr", "황보길동, 5 cm", "euc_kr"),
)


def _wrong_encodings(numbers: Iterator[int]) -> Iterator[Case]:
    for declared, name, encoding, text, written in WRITTEN:
        ds = base(PEOPLE[1], next(numbers), pixels=False)
        ds.SpecificCharacterSet = declared or "ISO_IR 6"
        raw = insert(encoded(ds), 0x00100010, b"PN", name.encode(encoding))
        raw = insert(raw, 0x00204000, b"LT", text.encode(written))
        raws = {part.encode(codec, "ignore") for part in name.split("^") for codec in {encoding, written}}
        judge = _without({one for one in raws if len(one) >= 4})
        yield Case(f"encoding: {declared} {encoding} {written}", raw, privacy("wrong character sets", judge))


def _without(raws: set[bytes]) -> Judge:
    return lambda seen: seen.raw is not None and not any(raw in seen.raw for raw in raws)


def cases(start: int) -> Iterator[Case]:
    """One file for each text; the character set stays the declared one."""
    numbers = count(start + 1)
    person = PEOPLE[1]
    for name, charset, texts, go, stay in CASES:
        for text in texts:
            ds = base(person, next(numbers), pixels=False)
            ds.SpecificCharacterSet, ds.PatientName = charset or "ISO_IR 6", name
            ds.ImageComments = text
            words = [word for word in stay if word in text]
            checks = privacy("names in scripts", gone(name), *map(gone, go))
            checks += retention("names in scripts", *(keeps(word, "ImageComments") for word in words))
            yield Case(f"script: {text}", encoded(ds), checks)
    yield from _wrong_encodings(numbers)
    ds = base(person, next(numbers), pixels=False)
    ds.PatientName, ds.Manufacturer, ds.ImageComments = "Philips^Mary", "Philips Medical Systems", "Philips called"
    judged = retention("a name like a maker's", lambda seen: str(seen.ds.Manufacturer) == "Philips Medical Systems")
    yield Case("maker", encoded(ds), [*judged, *privacy("a name like a maker's", gone("Philips called"))])
