"""Months' names in many languages, as they stand in dates of running text, and the same month's neighbours in their form."""

# ruff: noqa: E501 - a calendar reads better on one line
from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from anonymizer.words import fold

CALENDARS = tuple(
    tuple(names.split())
    for names in (
        "January February March April May June July August September October November December",
        "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec",
        "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
        "Jänner Februar März April Mai Juni Juli August Sept Okt November Dez",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
        "januari februari maart april mei juni juli augustus september oktober november december",
        "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
        "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia",
        "styczeń luty marzec kwiecień maj czerwiec lipiec sierpień wrzesień październik listopad grudzień",
        "январь февраль март апрель май июнь июль август сентябрь октябрь ноябрь декабрь",
        "январи февруари март април май юни юли август септември октомври ноември декември",
        "січня лютого березня квітня травня червня липня серпня вересня жовтня листопада грудня",
        "ledna února března dubna května června července srpna září října listopadu prosince",
        "januára februára marca apríla mája júna júla augusta septembra októbra novembra decembra",
        "siječnja veljače ožujka travnja svibnja lipnja srpnja kolovoza rujna listopada studenoga prosinca",
        "január február március április május június július augusztus szeptember október november december",
        "tammikuuta helmikuuta maaliskuuta huhtikuuta toukokuuta kesäkuuta heinäkuuta elokuuta syyskuuta lokakuuta marraskuuta joulukuuta",
        "januar februar marts april maj juni juli august september oktober november december",
        "januari februari mars april maj juni juli augusti september oktober november december",
        "ocak şubat mart nisan mayıs haziran temmuz ağustos eylül ekim kasım aralık",
        "ianuarie februarie martie aprilie mai iunie iulie august septembrie octombrie noiembrie decembrie",
        "Ιανουαρίου Φεβρουαρίου Μαρτίου Απριλίου Μαΐου Ιουνίου Ιουλίου Αυγούστου Σεπτεμβρίου Οκτωβρίου Νοεμβρίου Δεκεμβρίου",
        "يناير فبراير مارس أبريل مايو يونيو يوليو أغسطس سبتمبر أكتوبر نوفمبر ديسمبر",
        "ינואר פברואר מרץ אפריל מאי יוני יולי אוגוסט ספטמבר אוקטובר נובמבר דצמבר",
        "januari februari maret april mei juni juli agustus september oktober november desember",
        "janv févr mars avr mai juin juil août sept oct nov déc",
        "ene feb mar abr may jun jul ago sep oct nov dic",
        "gen feb mar apr mag giu lug ago set ott nov dic",
        "jan fev mar abr mai jun jul ago set out nov dez",
        "янв фев мар апр май июн июл авг сен окт ноя дек",
    )
)
MONTHS = {fold(name)[0]: number for names in reversed(CALENDARS) for number, name in enumerate(names, 1)}
MONTHS |= {"sept": 9, "mrt": 3, "mär": 3, "maer": 3}
# months that are other words as well: a year behind them must speak for them
_WORDS = frozenset(
    [
        "set",
        "out",
        "ago",
        "mag",
        "lug",
        "gen",
        "mart",
        "maj",
        "mei",
        "mar",
        "ott",
        "ene",
        "abr",
        "dic",
        "mai",
        "may",
        "march",
        "mars",
        "marca",
        "sep",
        "dec",
        "mars",
    ]
)
_WORDS |= {"ocak", "ekim", "nisan", "kasim", "aralik", "lipiec", "marzec", "luty", "maret", "май", "мая", "мар", "мaй"}


def _any_of(months: Iterable[str]) -> str:
    return "(?:" + "|".join(sorted(months, key=lambda name: (-len(name), name))) + ")"


MONTH = _any_of(MONTHS)
SURE_MONTH = _any_of(m for m in MONTHS if m not in _WORDS)
SHORT_MONTH = _any_of(m for m in MONTHS if m not in _WORDS or m in ("mar", "may", "march", "mai", "sep", "dec"))
ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")


def month_like(word: str | None, month: int) -> str:
    """The month's name in the language and length of ``word``."""
    calendar = next((names for names in CALENDARS if word and word in _folded(names)), CALENDARS[1])
    if word == "may":
        calendar = CALENDARS[0]
    return calendar[month - 1]


@cache
def _folded(names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(fold(name)[0] for name in names)
