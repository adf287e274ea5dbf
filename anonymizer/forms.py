"""Finds in running text what identifies by its form: contacts, addresses, identifiers, UIDs and ages over 89.

All patterns work on folded text (lower case, no accents, "_" as a space); PS3.15 E.3.6 and the identifiers of 45 CFR 164.514.
"""

# ruff: noqa: E501 - patterns read better whole
from __future__ import annotations

import re

Span = tuple[int, int, str]  # start, end (of the folded text), what stands there instead

_TLD = "com|org|net|edu|gov|mil|int|info|local|lan|internal|intra|health|med|clinic|hospital"
_COUNTRY = "uk|de|fr|es|it|nl|be|ch|at|pl|ru|jp|kr|cn|tw|in|br|au|nz|ca|se|no|dk|fi|ie|pt|gr|cz|us|eu"
_CONTACTS = re.compile(
    r"[\w.+\-]+@[\w\-]+(?:\.[\w\-]+)*"  # e-mail
    r"|(?<![a-z])[\w.\-]+\s?(?:\(at\)|\[at\]|\sat\s)\s?[\w\-]+(?:(?:\s?(?:\(dot\)|\[dot\]|\sdot\s)\s?|\.)[\w\-]+)+|(?<![\w.])@[a-z][\w.]{3,}|\w+ dot \w+ at \w+ dot \w+"
    r"|(?:https?|ftp|file)://\S+|www\.[\w\-]+\.\S+"
    rf"|(?<![\w@.])[a-z][\w\-]*(?:\.[a-z][\w\-]*)*\.(?:{_TLD})(?![\w\-])(?:/\S*)?|(?<![\w@.])[a-z][\w\-]+(?:\.[a-z][\w\-]+)+\.(?:{_COUNTRY})(?![\w\-])(?:/\S*)?"
    r"|(?:tel|phone|telephone|fax|mobile|cell|handy|telefon|telefono|pager|beeper|bleep|call|ph|ext|contact|whatsapp|sms|тел|電話|전화|电话)(?![a-z])\.?\s*(?:no\.?|nr\.?|number|at|#)?[:.]?\s*\+?[\d(][\d\s().\-/]{4,}\d"
    r"|(?<![a-z])(?:pager|beeper|bleep|ext(?:ension)?)\.?\s*[:#]?\s*\d(?:-?\d){2,}(?!\d)"
    r"|(?<![\d.])\+\d{1,3}[\s.\-]?\(?\d{1,4}\)?(?:[\s.\-]\d{2,4}){1,4}(?!\d)|(?<![\d.])\+\d{1,3}[\s.\-]?\(0\)\d{2,4}[\s\-/]\d{4,}(?!\d)"
    r"|(?<![\d.])(?:\+?1[\s.\-])?\(\d{2,5}\)\s?\d{3,4}[\s.\-]?\d{3,4}(?!\d)"
    r"|(?<![\d.])(?:1[\s.\-])?\d{3}[\s.\-]\d{3}[\s.\-]\d{4}(?!\d)"
    r"|(?<![\d.])0\d{1,4}[/\-\s]\d{3,4}[\s\-]?\d{3,5}(?!\d)|(?<![\d.])0\d(?:[\s.]\d\d){4}(?!\d)"
    r"|(?<![\d.])\d{3}-\d{4}(?:-\d{1,4})?(?!\d)"
    r"|(?<![\d.])00\d{2}[\s\-]\d{2,5}[\s\-]\d{4,8}(?!\d)|(?<=\sat )x\s?\d{3,5}(?!\d)|(?<=\son )0\d{4}\s\d{5,6}(?!\d)"
    r"|(?<![\d.])\d{3}-\d{2}-\d{4}(?!\d)"  # social security
    r"|(?<![\d.vr])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\d.])"  # IP address
    r"|(?<![a-z])(?:skype|telegram|wechat|viber|facebook|instagram|insta|twitter|tiktok|linkedin|snapchat|facetime)\s?(?:id|name|handle)?\s?:\s?(?=\S*[\d@._])@?[\w.\-]{3,}"
    r"|(?<![0-9a-f])(?:[0-9a-f]{2}[:\-]){5}[0-9a-f]{2}(?![0-9a-f])"
    r"|(?<![\w:])(?=[0-9a-f:]*(?:::|[a-f]))(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{1,4}(?![\w:])"
    r"|[a-z]:\\[^\s\"]+|\\{2,}[\w.\-]+\\+[^\s\"]+|(?<![\w/])/(?:home|users|mnt|data|export|var|opt|srv|tmp|volumes)/[^\s\"]+"
)
_UID = re.compile(r"(?<![\d.])[0-2](?:\.\d+){5,}(?![\d.])")
_STATES = (
    "al|ak|az|ar|ca|co|ct|de|dc|fl|ga|hi|id|il|in|ia|ks|ky|la|me|md|ma|mi|mn|ms|mo|mt|ne|nv|nh|nj|nm|ny|nc|nd|oh|ok|or|pa|"
    "ri|sc|sd|tn|tx|ut|vt|va|wa|wv|wi|wy|alabama|alaska|arizona|california|colorado|connecticut|florida|georgia|illinois|"
    "indiana|iowa|kansas|kentucky|louisiana|maine|maryland|massachusetts|michigan|minnesota|missouri|montana|nebraska|"
    "nevada|ohio|oklahoma|oregon|pennsylvania|tennessee|texas|utah|vermont|virginia|washington|wisconsin|wyoming"
)
_TWO_WORD_CITY = r"(?:san|new|los|las|el|la|santa|saint|st\.?|fort|ft\.?|port|mount|mt\.?|north|south|east|west|lake|palm|long|grand|little|salt lake|baton|des|cedar|colorado|kansas|oklahoma|jersey|virginia)\s+"
_ZIP = rf"(?:,?\s*(?:{_TWO_WORD_CITY})?[a-z][a-z.\-]+)?,?\s+(?:{_STATES})\.?,?\s+\d{{5}}(?:-\d{{4}})?(?!\d)"
_UK_AREAS = (
    "ab|al|ba|bb|bd|bh|bl|bn|br|bs|bt|ca|cb|cf|ch|cm|co|cr|ct|cv|cw|da|dd|de|dg|dh|dl|dn|dt|dy|ec|eh|en|ex|fk|fy|gl|gu|ha|"
    "hd|hg|hp|hr|hs|hu|hx|ig|ip|iv|ka|kt|kw|ky|la|ld|le|ll|ln|ls|lu|me|mk|ml|ne|ng|nn|np|nr|nw|ol|ox|pa|pe|ph|pl|po|pr|rg|"
    "rh|rm|sa|se|sg|sk|sl|sm|sn|so|sp|sr|ss|st|sw|sy|ta|td|tf|tn|tq|tr|ts|tw|ub|wa|wc|wd|wf|wn|wr|ws|wv|yo|ze|b|e|g|m|n|w"
)
_UK_POSTCODE = (
    rf"(?<![a-z0-9])(?:{_UK_AREAS})\d[a-z\d]?\s+\d(?!(?:st|nd|rd|th)(?![a-z]))[abd-hjlnp-uw-z]{{2}}(?![a-z0-9])"
)
_AFTER_STREET = rf"(?:,?\s*(?:apt|suite|unit|flat|#)\.?\s*\w+)?(?:{_ZIP})?(?:,?\s*\d{{4,5}}\s+[a-z][\w\-]+)?"
_ADDRESS = re.compile(
    rf"(?<!\d)\d{{1,5}}(?:-?[a-z])?\s+(?:[nsew]\.?\s+)?(?:[a-z'.\-]+\s+){{1,3}}(?:street|st|avenue|ave|road|rd|boulevard|blvd|drive|dr|lane|ln|way|court|ct|"
    rf"place|pl|square|sq|terrace|highway|hwy|parkway|pkwy|crescent|close|grove|gardens|strasse|str|weg|allee)(?![a-z])\.?(?:\s+[ns][ew](?![a-z]))?{_AFTER_STREET}"
    rf"|(?<![a-z])[a-z\-]+(?:strasse|str\.|gasse|platz|allee|weg|straat|laan|plein|gracht|kade|gatan|vagen|gade|vej)\s*\d{{1,4}}[a-z]?(?![\w])(?:,?\s*(?:[a-z]{{1,2}}-)?\d{{4,5}}(?:\s?[a-z]{{2}})?\s+[a-z][\w\-]+)?"
    r"|(?<![\w])\d{1,4}(?:\s?bis|\s?ter)?,?\s+(?:rue|avenue|av\.|boulevard|bd|chemin|impasse|allee|quai|route|cours)\s+(?:de |du |des |la |le |les |l'|d')*[\w'\-]+(?:,?\s*\d{5}\s+[a-z][\w\-]+)?"
    r"|(?<![a-z])(?:calle|c/|avda\.?|avenida|plaza|paseo|carretera|rua|viale|piazza|corso|ul\.|ulica|ул\.|улица|пр\.)\s*(?:de |del |la |las |los |di |della |dei |da |do |dos )*[\w'\-]+(?:\s[a-zа-я][\w'\-]+)?,?\s*(?:n\W{0,2}\s?|д\.\s?)?\d{1,4}[a-z]?(?:\s\d{1,2}[oa]?[a-z]?(?![a-z]))?(?:,?\s*(?:кв\.\s?\d+)?)?(?:,?\s*\d{4,5}(?:-\d{3})?\s+[a-z][\w\-]+|(?:(?<=,\s)|,\s*)[a-z][\w\-]+\s\d{5}(?!\d))?"
    r"|(?<![a-z])via\s+(?:di |della |dei )?[a-z'\-]+(?:\s[a-z'\-]+)?,?\s*\d{1,4},?\s*\d{5}\s+[a-z][\w\-]+"
    r"|(?<![\d.])\d{1,4}[a-z]?\s(?:[a-z'\-]{4,}\s){1,2}(?:row|mews|walk|rise|circle|cir|trail|trl|loop|quay|wharf|green|croft|hill|vale)(?=,)(?:,\s[a-z\-]{3,}(?=\s[a-z]{1,2}\d))?"
    r"|(?<![a-z])(?:rural )?(?:route|rr)\s\d+\s?,?\s?box\s\d+(?:,\s[a-z][a-z\-]+)?"
    r"|[一-龥]{1,4}[都道府県][一-龥]{1,6}[市区町村郡][一-龥ぁ-ヶ]{0,10}(?:\d[\d\-−丁目番地号]*)?|(?:[一-龥]{2,4}[省市]){0,2}[一-龥]{2,4}[区县][一-龥]{2,6}(?:路|街|巷|弄)\s?\d+号?"
    r"|[가-힣]{2,6}(?:시|도)\s[가-힣]{1,5}(?:구|군|시)\s[가-힣\d]{1,8}(?:로|길|동)(?:\s?\d[\d\-]*)?"
    r"|\b(?:p\.?\s?o\.?\s?box|postfach|apartado)\s+\d+"
    rf"|(?<![a-z])(?:{_TWO_WORD_CITY})?[a-z][a-z.\-]+,?\s+(?:{_STATES})\.?,?\s+\d{{5}}(?:-\d{{4}})?(?!\d)"
    r"|(?<![a-z])(?:zip|plz|postcode|postal code|code postal|c\.p\.|codigo postal)\s?(?:code)?[:.]?\s?(?:\d{4,6}(?:-\d{3,4})?|[a-z]{1,2}\d[a-z\d]?\s?\d[a-z]{2})(?!\d)"
    rf"|{_UK_POSTCODE}|(?:(?<![a-z0-9])(?:[a-z][a-z\-]+[,\s]{{1,2}})?(?:ab|bc|mb|nb|nl|ns|nt|nu|on|pe|qc|sk|yt)[,\s]{{1,2}})?(?<![a-z0-9])[abceghj-nprstvxy]\d[a-z]\s\d[a-z]\d(?![a-z0-9])|〒\s?\d{{3}}-?\d{{4}}"
)
_NUMBERED = (
    r"(?:pt|pat(?:ient)?|hosp(?:ital)?|chart|file|record|folder|specimen|sample|path(?:ology)?|req(?:uisition)?|request|encounter|enc|episode|referral|invoice|"
    r"claim|booking|appointment|barcode|lot|badge|employee|staff|member|group|subscriber|plan|certificate|license plate|plate|vehicle|asset|device|implant|"
    r"locker|case|visit|order|adm(?:ission)?|account|accession|acc|policy|insurance|study|exam|subject|participant|donor|trial|dossier|fall|vers(?:icher(?:ung|ten))?s?|kranken(?:kasse)?|ik|протокол|карта)"
)
_ID_CUE = re.compile(
    rf"(?<![^\W\d_])(?:{_NUMBERED}[\s\-.]*(?:id|no|nr|num|number|nummer)(?![a-z])|mrn|m\.r\.n\.|medical record(?: number| no)?|pid|acc(?:ession)?|account|admission|"
    r"ssn|ssno|social security(?: number)?|nhs(?: number| no)?|insurance(?: id)?|policy|encounter|enc|visit(?: id)?|order(?: id)?|invoice|claim|id|no\.|nr\.|badge|license plate|licence plate|plate|license|licence|"
    r"passport|serial(?: number| no)?|s/n|sn|dob|d\.o\.b\.|born(?: on)?|geb\.?(?:oren)?(?: am)?|nee? le|nato il|nacido|icn|csn|fin|hcn|ohip|kvnr|unit (?:no|nr|number)|fnr|user(?: ?name| ?id)?|login|insee|nir|num(?:ero)? (?:de )?secu(?:rite sociale)?|kenteken|kennzeichen|medicare|medicaid|nhi|cpf|dni|nif|nie|bsn|ahv|pesel|egn|inn|snils|снилс|полис|№|患者番号|登録番号|病历号|住院号|등록번호)"
    r"(?![^\W\d_])(?:\s+(?:is|was|of))?\s?[:#=.\-№]*\s{0,2}(?P<v>(?=[^\W\d_]{0,8}[\-/.]?\d|[^\W\d_]{1,3} \d)[^\W_](?:[^\W_]|[\-/. ](?=\d)|[\-.](?=\w)|/(?=[a-z]{0,4}\d))+[^\W_](?:[ \-]\d{2,5})*)"
)
_NUMBERED_THING = re.compile(  # "old chart: 77-31-905", "specimen S22-18834"
    r"(?<![a-z])(?:chart|file|record|folder|specimen|sample|lot|batch|accession|biopsy|pathology|locker|member|case|booking|referral|dossier|akte)\s?[:#]?\s?"
    r"(?P<v>(?=(?:[a-z\-/.]*\d){5}|[a-z]{1,4}-\d{3})[a-z]{0,4}-?\d[a-z\d]*(?:[\-/.][a-z\d]+)*)(?![\w%])"
)
_TERMINOLOGY = re.compile(
    r"(?:snomed(?:[ \-]?ct)?|sct|loinc|radlex|rid|omim|orpha(?:net)?|pmid|umls|icd(?:[ \-]?o?[ \-]?\d+)?|cpt|ops|fma)[\s:#]*$"
)
_HASH = re.compile(
    r"(?<!series )(?<!image )(?<!slice )(?<!phase )(?<!recon )(?<!scan )#\s?(?=[a-z\-/]*\d)[a-z0-9][a-z0-9\-/]{3,}"
)
_NUMBERS = re.compile(
    r"(?<![\d.])\d{7,}(?![\d.]*\d)|(?<![a-z0-9])[a-z]{1,4}-?\d{6,}[a-z]?(?![a-z0-9])|(?<![\d.\-])\d{2,3}-\d{3}-\d{3,4}(?![\d\-])|(?<![a-z0-9])[a-z]{4}\s?\d{4}\s\d{4}(?!\d)|(?<![\d.])756\s?\d{4}\s?\d{4}\s?\d\d(?!\d)|(?<![a-z0-9])\d{6,}[a-z](?![a-z0-9])"
    r"|(?<![a-z0-9])[a-z]{2}\d{2}(?:\s\d{4}){3,6}(?:\s\d{1,4})?(?![a-z0-9])"  # IBAN
    r"|(?<![\d.])\d{3}\.\d{3}\.\d{3}[.\-]\d{2}(?!\d)|(?<!\d)756\.\d{4}\.\d{4}\.\d{2}(?!\d)|(?<![\d.])\d{6,8}[\-+]\d{4}(?!\d)"
    r"|(?<![a-z0-9])[1-9][a-z][a-z0-9]\d-?[a-z][a-z0-9]\d-?[a-z]{2}\d{2}(?![a-z0-9])"  # Medicare
    r"|(?<![a-z0-9])[a-z]{2}\s?\d{2}\s\d{2}\s\d{2}\s?[a-d](?![a-z0-9])"  # National Insurance
    r"|(?<![a-z0-9])(?=[a-z]*\d)(?=\d*[a-z])[a-hj-npr-z0-9]{17}(?![a-z0-9])"  # vehicle
    r"|(?<![a-z0-9])[a-z]{6}\d\d[a-z]\d\d[a-z]\d{3}[a-z](?![a-z0-9])"  # codice fiscale
    r"|(?<![\d.])\d{4}\s\d{4}\s\d{4}(?![\d.]|\s?(?:mm|x\b))"  # Aadhaar
    r"|(?<![a-z])(?:gps|latitude|coordinates?)[:\s]+-?\d{1,3}\.\d{2,},?\s*-?\d{1,3}\.\d{2,}"
    r"|(?<![a-z])(?<=by )[a-z]{3,}\d{1,4}(?![\w])"  # a login
    r"|(?<![a-z\d])[12378]\s\d\d\s(?:0[1-9]|1[0-2]|[2-9]\d)\s(?:\d\d|2[ab])\s\d{3}\s\d{3}(?:\s\d\d)?(?!\d)"  # INSEE
    r"|(?<=plate )[a-z]{1,3}-[a-z]{1,2} ?\d{1,4}(?!\d)"
    r"|(?<![\d.])\d{4}[\s\-]\d{4}[\s\-]\d{4}[\s\-]\d{3,4}(?!\d)"  # payment card
)
_YEARS = r"(?:y(?:/?o(?![a-z])|rs?(?![a-z])|ears?(?![a-z]))|(?:-| )?year|jahre?|-?jahrig\w*|ans(?![a-z])|anos|anni|lat(?![a-z])|jaar|let(?![a-z])|ar gammal|vuotias|eves|yas(?:inda)?(?![a-z])|ετων|tahun|лет|岁|歳|才|세|살)"
_AGE = re.compile(
    rf"(?<![\d.])0?(?P<a>9\d|1[0-3]\d)(?<![\-c]99)(?<![\-c] 99)(?<![nrae\-]1\d\d)(?:(?=[\s\-]?{_YEARS}|\s?y[mf]?(?![a-z])|\s?/\s?[mf](?![a-z/]))|(?=\s?[fm](?![a-z])(?![\s\-]?tc)))|(?<![a-z])(?:aged?|age of|alter|edad|eta|leeftijd|wiek)[\s:]+(?P<b>9\d|1[0-3]\d)(?!\d)|(?<![a-z0-9/])[mf]\s?/\s?(?P<e>9\d|1[01]\d)(?![\d.])"
    r"|(?<![a-z\d.])(?P<f>9\d|1[01]\d)(?:st|nd|rd|th)?(?=\s?(?:st|nd|rd|th)?\s(?:birthday|year of (?:life|age)))"
    r"|(?<![a-z])(?P<g>nonagenarian|centenarian)(?![a-z])"
    r"|(?P<c>ninety(?:[\s\-](?:one|two|three|four|five|six|seven|eight|nine))?|(?:one|a) hundred(?:[\s\-](?:and[\s\-])?(?:one|two|three|four|five|six|seven|eight|nine|ten))?)(?=[\s\-]year)"
)
STATES = re.compile(rf",\s*({_STATES})(?![^\W_])")


def forms(folded: str) -> list[Span]:
    """Spans of everything recognised by form; an age over 89 becomes 90, all else goes."""
    spans: list[Span] = [(*m.span(), "") for m in _CONTACTS.finditer(folded)]
    if any(char.isdigit() for char in folded):
        for pattern in (_ADDRESS, _ID_CUE, _HASH):
            spans += [(*m.span(), "") for m in pattern.finditer(folded)]
        spans += [(*m.span("v"), "") for m in _NUMBERED_THING.finditer(folded)]
        numbers = _NUMBERS.finditer(folded)
        spans += [
            (*m.span(), "") for m in numbers if not _TERMINOLOGY.search(folded[max(0, m.start() - 16) : m.start()])
        ]
        spans += [(*m.span(), "") for m in _UID.finditer(folded) if not m[0].startswith("1.2.840.10008.")]
    spans += [(*m.span(m.lastgroup or 0), "aged 90 or more" if m["g"] else "90") for m in _AGE.finditer(folded)]
    return spans
