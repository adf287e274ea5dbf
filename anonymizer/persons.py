"""Finds people in running text whom no attribute of the object names: by title, role, cue, credential, and form of the name.

A word is taken for a name when nothing else explains it: it is no word of the trade or of English, stands with a capital, and a
cue or a list of names speaks for it. Eponyms ("Hodgkin lymphoma") stay (PS3.15 E.3.6).
"""

# ruff: noqa: E501 - patterns and word lists read better whole
from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from anonymizer.words import common_words, eponyms, first_names, last_names, used_as_eponym, vocabulary

Pair = tuple[int, int]

_LINK = "van|von|de|der|den|la|le|del|di|da|dos|do|du|bin|ibn|al|el|ter|ten|zu|zum|y|st"
_NAME = r"[^\W\d_][^\W\d_'’\-]*(?:[\-'’][^\W\d_]+)*"
_PERSON = rf"(?:[^\W\d_]\.?\s?){{0,2}}(?:(?:{_LINK})\s)*{_NAME}(?:(?:[\s^,&]{{1,3}}|/)(?:and\s|und\s|et\s|y\s)?(?:[^\W\d_]\.\s?)?(?:(?:{_LINK})\s)*{_NAME}){{0,3}}"
_TITLE = re.compile(
    rf"(?<![^\W_])(?P<t>drs?|doctor|doktor|docteur|doctora|doutora?|dottoressa|dokter|lekarz|prof|professor|professeur|mr|mrs|ms|miss|mister|herr|herrn|frau|mme|mlle|monsieur|madame|sr|sra|srta|sig|signora|dott|dottssa|dottore|doktorand|pr|dra|sister|father|rev|schwester|pfleger|oberarztin|oberarzt|assistenzarztin|assistenzarzt|chefarzt|infirmiere|infirmier|enfermera|enfermero|infermiera|senhora?|senora?|mevr|mevrouw|dhr|meneer|fru|pani|pan|д-р|др|доктор|врач|профессор|проф|г-н|г-жа|медсестра|лаборант|рентгенолаборант|δρ|ιατρος|ד[\"״]ר|פרופ['׳]|دكتور|الدكتور|د|dr in)(?:\.\s*|\s+|(?<=dr)-(?=[^\W\d_]{{5}}))"
    rf"(?:(?:med|dr|h\.c|priv|doz|oberarzt|rer|nat)\.?\s+)*(?P<n>{_PERSON})"
)
_VERBED = (
    r"performed|read|reported|dictated|signed|reviewed|ordered|referred|ref|requested|approved|verified|interpreted|scanned|acquired|electronically signed|signed electronically|"
    r"transcribed|operated|done|seen|discussed|consulted|examined|injected|imaged|entered|checked|confirmed|notified|informed|paged|called|faxed|sent|drawn|contoured|segmented|annotated|measured|created|edited|modified|prepared|supervised|attended|grossed|accessioned|planned|calibrated|cleared|collected|obtained|positioned|sedated|witnessed|translated|spoke|spoken|talked|handed over|protocolled|befundet von|befundet|gez|lu|vu|realise|realizado|informado|firmado|eseguito|refertato|осмотрен|описал|выполнил"
)
_BY = re.compile(
    rf"(?<![^\W_])(?:{_VERBED})(?:\s+electronically)?(?:\s(?:by|with|w/?|to|von|durch|par|por|da)[\s:]+|\s?[:=]\s?)"
    rf"(?:drs?\.?\s+|prof\.?\s+|nurse\s+|tech(?:nologist|nician)?\.?\s+|rad\.?\s+|(?:pa|np|rn|sho|mtra?|rtt?)\s+)?(?P<n>{_PERSON})|(?<![^\W_])(?:d/w|c/o|w/|cc|attn|fao|/s/|signed)[:\s]+(?P<m>{_PERSON})"
)
_LABEL = re.compile(
    rf"(?<![^\W_])(?:(?:logged (?:in|on) as|under (?:the )?name(?: of)?|in the name of|name is|also known as|formerly|nee|user|username|userid)\s+|(?:patient|pt|pat|patient name|pat name|name|nom|nombre|nome|vorname|nachname|first name|last name|surname|given name|maiden name|alias|aka|initials|op|operator|technologist|technician|tech|radiologist|physician|referring(?: physician)?|referrer|attending|requesting(?: physician)?|"
    rf"surgeon|resident|fellow|nurse|anesthetist|anaesthetist|sonographer|radiographer|reader|reporter|mother|father|husband|wife|daughter|son|spouse|partner|guardian|carer|contact|emergency contact|next of kin|nok|relative|observer|author|ref|cc|attn|pi|principal investigator|investigator|coordinator|aide|physics|contouring|planning|dosimetry|transcriptionist|typist|(?:[a-z]{(2,)}\s)?team|gp|pcp|user|login|patientin|arzt|untersucher|mtra|medecin|medico|пациент|фио|врач|患者名|氏名|患者|病人|姓名|환자|환자명|paciente|paziente|operador|operatore|untersucherin|patient\(in\)|hasta|doktor)\s?(?:name|initials)?(?:\s?[:=：]\s?|\s-\s))"
    rf"(?P<n>{_PERSON})"
)
_ROLE = re.compile(
    rf"(?<![^\W_])(?:(?:physician|nursing|medical|radiology) assistant|nurse|technologist|technician|tech|radiologist|sonographer|radiographer|physician|surgeon|resident|fellow|attending|consultant|operator|anesthetist|anaesthetist|rn|investigator|reader|gp|pcp|physicist|dosimetrist|[a-z]{{3,}}(?:ologist|iatrist|therapist)|paramedic|midwife|phlebotomist|secretary|typist|interpreter|caregiver|roommate|fiancee?|grand(?:mother|father|son|daughter)|student|trainee|registrar|stepdad|stepmom|stepmum|stepfather|stepmother|nephew|niece|cousin|"
    rf"mother|father|husband|wife|daughter|son|brother|sister|spouse|guardian|uncle|aunt|friend|partner|neighbou?r|patient|pt|patientin|paciente|пациент|пациентка|больной|больная)\.?[\s(]+(?:is\s|named\s|called\s)?(?P<n>{_PERSON})"
)
_CREDENTIAL = re.compile(
    rf"(?<![^\W_])(?P<n>(?:[^\W\d_]\.\s?)?{_NAME}(?:[\s^]+(?:[^\W\d_]\.\s?)?{_NAME}){{0,2}}(?:,\s[^\W\d_]\.)?),?\s+(?:m\.?d\.?|d\.?o\.?|r\.?n\.?|ph\.?d\.?|rt\(r\)|rt\(ct\)|rt\(mr\)|r\.?t\.?|pa-c|np|frcr|frcs|mbbs|mbchb|facr|arrt|rdms|cnmt|dnp|crna|facharzt|oberarzt|chefarzt)(?![^\W_])"
)
_HAS_CREDENTIAL = re.compile(
    r"(?<![^\W_])(?:m\.?d|d\.?o|r\.?n|ph\.?d|r\.?t|pa-c|np|frc[rs]|mb|facr|arrt|rdms|cnmt|dnp|crna|facharzt|oberarzt|chefarzt)"
)
_DOES = (
    "called|notified|asked|asks|requested|requests|wants|informed|aware|paged|agreed|agrees|reviewed|states|said|says|reports|"
    "consulted|telephoned|phoned|rang|confirmed|confirms|approved|signed|dictated|read|performed|scanned|present|will|to review|to see|to follow|to compare|"
    "has been|service|team|clinic|practice|at bedside|in attendance|fell|presents|presented|complains|denies|refused|refuses|tolerated|vomited|underwent|coughed"
)
_ACTS = re.compile(
    rf"(?<![^\W_])(?P<n>{_NAME}(?:\s{_NAME})?)(?:['’]s)?\s(?:was\s|is\s|has\s|been\s)?(?:{_DOES})(?![^\W_])"
)
_LOGIN = re.compile(r"(?:[:/=]\s?|(?<=by )|(?<=per ))(?P<n>[a-z]{6,})(?![^\W_])")
_INITIAL = re.compile(
    rf"(?<![^\W_.])[^\W\d_]\.\s?(?:[^\W\d_]\.\s?)?(?P<n>{_NAME})|(?<![^\W_])(?P<m>{_NAME}),?\s[^\W\d_]\.(?![^\W_])"
)
_PREPOSED = re.compile(rf"(?<![^\W_])(?:by|with|per|to|for|from|via|attn|cc|mit|par|por)\s+(?P<n>{_PERSON})")
_CARET = re.compile(rf"{_NAME}\^{_NAME}(?:\^[^\s,;]*)*")
_KEPT = re.compile(
    r"lou gehrig|sister mary joseph|st\.? jude|ann arbor|ivor lewis|argyll robertson|bence jones|(?:mcdonald|atlanta|chicago|rotterdam|tokyo|sydney) (?:19|20)\d\d(?!\d)"
)
_HAN = "[\u3040-\u30ff\u3400-\u9fff]"
# characters that clinical words have and people's names do not
_CLINICAL = "[炎癌瘤部胸腹頭头肺肝腎肾骨血症術术検查査影像線线造撮節节腫肿瘍疡痛熱热咳折後后前左右側侧性診诊断断見见無无常異异脳脑膵胆尿軟软増增影照射剤剂平扫掃強]"
_FAR_EAST = re.compile(
    rf"(?:(?!{_CLINICAL}){_HAN}){{1,4}}?(?:\s?(?:(?!{_CLINICAL}){_HAN}){{1,3}})?(?=\s?(?:先生|さん|様|氏(?!名)|医師|技師|看護師|女士|小姐|医生|醫生|大夫|护士|教授))"
    rf"|(?:(?<=担当医)|(?<=主治医)|(?<=読影医)|(?<=依頼医)|(?<=撮影者)|(?<=患者名)|(?<=患者氏名)|(?<=氏名)|(?<=姓名)|(?<=医生)|(?<=医师)|(?<=技師))\s?[:：]?\s?(?:(?!{_CLINICAL}){_HAN}){{1,4}}(?!{_HAN})(?:\s(?:(?!{_CLINICAL}){_HAN}){{1,3}}(?!{_HAN}))?"
    r"|[\uac00-\ud7af]{2,4}(?=\s?(?:선생님|선생|교수|님|씨|의사|간호사|기사))"
)
_CANDIDATE = re.compile(r"(?<![^\W_])[^\W\d_][^\W\d_'’\-]+(?:[\-'’][^\W\d_]{2,})*(?![^\W_])")
_BETWEEN = re.compile(rf"[\s,^]{{1,2}}(?:[a-z]\.?\s)?(?:(?:{_LINK})\s)*")
_PARTICLES = frozenset(_LINK.split("|")) | {"and", "und", "et"}
_STOP = frozenset(
    [
        *("me", "us", "him", "her", "them", "myself", "patient", "family", "phone"),
        "by",
        "with",
        "for",
        "at",
        "in",
        "on",
        "of",
        "and",
        "or",
        "to",
        "from",
        "the",
        "is",
        "was",
        "has",
        "had",
        "no",
        "not",
        "per",
        "via",
        "into",
        "after",
        "before",
        "during",
        "as",
    ]
)
# endings and beginnings that surnames have and clinical words do not
_SURNAME = re.compile(
    r"(?:mc|mac|fitz|o['’]|d['’]|al-|el-|ben-|bin-)[^\W\d_]{3,}$"
    r"|[^\W\d_]{3,}(?:ski|sky|skaya|cki|wicz|czyk|czuk|enko|chuk|ovic|ovich|evic|evich|escu|oglu|yan|ian|idze|shvili|opoulos|akis|"
    r"sson|rsen|nsen|lsen|dsen|rssen|stead|combe|worth|thwaite|bury|borough|hurst|shaw|croft|ridge|wick|bourne|stein|feld|baum|mann|meier|meyer|maier|huber|bauer|dottir|strom|quist|gaard|"
    r"kov|rov|lov|nov|tov|sova|kova|rova|nova|tova|ский|ская|енко|чук|швили)$"
)


class Page:
    """One text as it stands and folded; tells which words are people's names."""

    def __init__(self, folded: str, capital: list[bool]) -> None:
        self.folded, self.capital = folded, capital
        letters = [up for char, up in zip(folded, capital, strict=True) if char.isalpha()]
        self.shouting = len(letters) > 3 and sum(letters) > 0.7 * len(letters)

    def spans(self) -> list[Pair]:
        """Every stretch that names a person."""
        folded = self.folded
        found = [m.span() for m in _CARET.finditer(folded) if not set(re.split(r"\^+", m[0])) - {""} <= vocabulary()]
        for pattern, trim in (
            (_TITLE, self._titled),
            (_BY, self._with),
            (_LABEL, self._labelled),
            (_ROLE, self._sure),
            (_ACTS, self._known),
            (_INITIAL, self._unknown),
            (_PREPOSED, self._known),
            (_CREDENTIAL, self._before),
        ):
            if pattern is _CREDENTIAL and not _HAS_CREDENTIAL.search(folded):
                continue
            pos = 0
            while (match := pattern.search(folded, pos)) is not None:
                group = "n" if match["n"] is not None else "m"
                span = trim(match, group)
                if span is not None:
                    found.append(span)
                pos = max(span[1] if span else match.start(group), match.start() + 1)
        if not folded.isascii():
            found += [m.span() for m in _FAR_EAST.finditer(folded)]
        found += self._alone() + self._beside() + self._logins()
        kept = [m.span() for m in _KEPT.finditer(folded)]
        return [span for span in found if not any(span[0] < end and start < span[1] for start, end in kept)]

    def _upper(self, position: int) -> bool:
        return self.capital[position] or (not self.folded[position].isascii() and not _cased(self.folded[position]))

    def _title_case(self, word: str, position: int) -> bool:
        """Written Like This (or LikeThis), not like this nor LIKE THIS."""
        ups = self.capital[position : position + len(word)]
        return ups[0] and not all(up for up, char in zip(ups, word, strict=True) if char.isalpha())

    def _name(self, word: str, position: int, known: bool = False) -> bool:
        """Whether a word can be a name: written with a capital, and no ordinary word unless it is also a surname."""
        if word in _STOP or not (self._upper(position) or self.shouting):
            return False
        if _listed(word):
            return not (self.shouting and word in common_words())
        return not known and word not in vocabulary() and len(word) > 1

    def _run(self, match: re.Match[str], group: str, accept: Callable[[int, str, int], bool]) -> Pair | None:
        """From the start of the match over the words that are accepted."""
        start = end = match.start(group)
        found = False
        for index, word in enumerate(re.finditer(_NAME, match[group])):
            where = start + word.start()
            if len(word[0]) == 1 and not found:
                continue
            if word[0] in _PARTICLES:
                continue
            if word[0] in _STOP:
                break
            if (
                found
                and not word[0].isascii()
                and not _cased(word[0][0])
                and "," in match[group][end - start : word.start()]
            ):
                break  # scripts without capitals write a name in one piece
            if found and len(word[0]) <= 4 and not self.shouting and all(self.capital[where : where + len(word[0])]):
                break  # "Dr. Lee, MRI"
            if not accept(index if found else 0, word[0], where):
                break
            if _eponymous(word[0]) and used_as_eponym(self.folded, start + word.end()):
                break
            end, found = start + word.end(), True
        return (start, end) if found else None

    def _titled(self, match: re.Match[str], group: str) -> Pair | None:
        """After a title the first word is a name even if it is an ordinary word written with a capital."""
        modality = match["t"] in ("mr", "dr", "ms", "pr", "d", "pan", "sr") and self.capital[match.end("t") - 1]
        dotted = self.folded[match.end("t") : match.end("t") + 1] == "."

        def accept(index: int, word: str, where: int) -> bool:
            if index == 0 or where == match.start(group):
                plain = word in vocabulary() and not _listed(word)
                if modality and not dotted and not self.shouting:  # "MR Brain", "DR Chest": a modality, not a title
                    return word not in vocabulary() and self._name(word, where)
                return word not in _STOP and (not plain or (self._upper(where) and not self.shouting))
            return self._name(word, where)

        return self._run(match, group, accept)

    def _named(self, match: re.Match[str], group: str) -> Pair | None:
        """After "read by" any word that is no ordinary word is a name."""
        first = match.start(group)

        def accept(index: int, word: str, where: int) -> bool:
            if word in vocabulary() and where == first:
                return self._name(word, where, known=True)
            return word not in vocabulary() or self._name(word, where)

        return self._run(match, group, accept)

    def _labelled(self, match: re.Match[str], group: str) -> Pair | None:
        """After "operator:" the same, and a listed name also in small letters."""

        def accept(index: int, word: str, where: int) -> bool:
            if word in vocabulary():
                if word in eponyms() and self._title_case(word, where):
                    return True
                return self._name(word, where, known=True) or (word not in common_words() and _listed(word))
            return True

        return self._run(match, group, accept)

    def _with(self, match: re.Match[str], group: str) -> Pair | None:
        """After "w/" or "c/o": abbreviations are not names."""
        if group == "n":
            return self._named(match, group)

        def accept(index: int, word: str, where: int) -> bool:
            return word not in vocabulary() and (self._title_case(word, where) or _listed(word))

        return self._run(match, group, accept)

    def _sure(self, match: re.Match[str], group: str) -> Pair | None:
        """After a role what is known as a name, or a word nobody knows."""

        def accept(index: int, word: str, where: int) -> bool:
            if word in vocabulary():
                return self._name(word, where, known=True)
            if len(word) >= 5 and (_listed(word) or word[1:] in last_names()):  # the latter is a login
                return True
            spoken = len(word) >= 5 and re.search("[aeiouy]", word) is not None
            return self._name(word, where) and (spoken or self._title_case(word, where))

        return self._run(match, group, accept)

    def _known(self, match: re.Match[str], group: str) -> Pair | None:
        """A weak cue ("per", "called"): a word nobody knows, or one that is a name and nothing else."""

        def accept(index: int, word: str, where: int) -> bool:
            acts = match.re is _ACTS
            if word in vocabulary():
                return acts and word in eponyms() and _listed(word) and self._title_case(word, where)
            if match[0].startswith("by ") and len(word) >= 6 and word[1:] in last_names():
                return True  # a login
            if match[0].startswith(("per ", "cc ", "attn ")) and len(word) >= 4 and self._title_case(word, where):
                return word not in eponyms()
            return self._surname(word, where) or (acts and self._title_case(word, where) and len(word) >= 4)

        return self._run(match, group, accept)

    def _unknown(self, match: re.Match[str], group: str) -> Pair | None:
        """Beside an initial: a word with a capital that nobody knows."""
        word, where = match[group], match.start(group)
        initial = match.start() if group == "n" else match.end() - 2
        if group == "n" and not all(
            self._upper(at.start() + match.start()) for at in re.finditer(r"\w(?=\.)", match[0])
        ):
            return None  # "Z.n.", "V.a."
        if len(word) < 3 or not self.capital[where] or not self.capital[initial]:
            return None
        if word in vocabulary() and not (_listed(word) and word not in common_words() and word not in eponyms()):
            return None
        return match.span()

    def _before(self, match: re.Match[str], group: str) -> Pair | None:
        """Before a credential, backwards to the first ordinary word."""
        words = list(re.finditer(_NAME, match[group]))
        start = end = match.end(group)
        for word in reversed(words):
            where = match.start(group) + word.start()
            if len(word[0]) > 1 and not self._name(word[0], where):
                break
            start = where
        named = any(len(w[0]) > 1 and match.start(group) + w.start() >= start for w in words)
        return (start, end) if named else None

    def _surname(self, word: str, position: int) -> bool:
        """A word that is a name by itself: listed or built like one, no ordinary word, written with a capital."""
        if word in vocabulary() or len(word) < 4:
            return False
        if self.shouting or not self._title_case(word, position):
            return self.capital[position] and len(word) >= 5 and (_listed(word) or bool(_SURNAME.match(word)))
        return _listed(word) or _SURNAME.match(word) is not None

    def _alone(self) -> list[Pair]:
        """Words that are names wherever they stand."""
        spans = []
        for word in _CANDIDATE.finditer(self.folded):
            parts = re.split(r"['’\-]", word[0])
            bare = word[0][:-2] if word[0][-2:] in ("'s", "’s") else word[0]
            if used_as_eponym(self.folded, word.end()) or any(part in eponyms() for part in parts):
                continue
            if self._surname(bare, word.start()) or (len(parts) > 1 and any(self._part(p, word) for p in parts)):
                spans.append(word.span())
        return spans

    def _logins(self) -> list[Pair]:
        """An initial drawn together with a surname ("JHalvorsen") behind a colon, a slash or "by"."""
        return [
            match.span("n")
            for match in _LOGIN.finditer(self.folded)
            if self.capital[match.start("n")]
            and self._title_case(match["n"][1:], match.start("n") + 1)
            and not any(self.capital[match.start("n") + 2 : match.end("n")])
            and not {match["n"], match["n"][1:]} & vocabulary()
        ]

    def _stranger(self, word: str, position: int) -> bool:
        """A word nobody knows that is no abbreviation."""
        return word not in vocabulary() and self._title_case(word, position)

    def _part(self, part: str, word: re.Match[str]) -> bool:
        return len(part) >= 4 and part in last_names() and part not in vocabulary() and self.capital[word.start()]

    def _beside(self) -> list[Pair]:
        """Given name and surname side by side, in either order, with capitals or (when both are names only) without."""
        words = list(_CANDIDATE.finditer(self.folded))
        spans = []
        for one, two in pairwise(words):
            if not _BETWEEN.fullmatch(self.folded[one.end() : two.start()]):
                continue
            pair = (one[0], two[0])
            if two[0] in eponyms() and used_as_eponym(self.folded, two.end()):
                continue
            first = [w in first_names() and w not in common_words() for w in pair]
            if self.capital[one.start()] and self.capital[two.start()]:
                other = [
                    w in last_names() or self._stranger(w, at.start()) or self._surname(w, at.start())
                    for w, at in ((one[0], one), (two[0], two))
                ]
            else:
                other = [w in last_names() and w not in common_words() and len(w) > 3 for w in pair]
                first = [f and len(w) > 3 for f, w in zip(first, pair, strict=True)]
            if (first[0] and other[1]) or (first[1] and other[0]):
                spans.append((one.start(), two.end()))
        return spans


def _eponymous(word: str) -> bool:
    return word in eponyms() or ("-" in word and not {*word.split("-")} - eponyms() - last_names())


def _listed(word: str) -> bool:
    return word in last_names() or word in first_names()


def _cased(char: str) -> bool:
    return char.upper() != char.lower()
