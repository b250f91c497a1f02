"""Regions: ISO 3166 codes and the groups that every policy knows. Groups travel in the bundle."""

from collections.abc import Iterable, Mapping
from typing import Final

COUNTRIES: Final = frozenset(
    "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ "  # noqa: SIM905
    "CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR "
    "GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO "
    "JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR "
    "MS MT MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO "
    "RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV "
    "TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW XK".split()
)
"""ISO 3166-1 alpha-2, and XK, which is in use."""

_EU: Final = "AT BE BG HR CY CZ DK EE FI FR DE GR HU IE IT LV LT LU MT NL PL PT RO SK SI ES SE".split()  # noqa: SIM905 - a table reads best as a table

BUILT_IN_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "EU": tuple(sorted(_EU)),
    "EEA": tuple(sorted([*_EU, "IS", "LI", "NO"])),
}


def is_code(region: str) -> bool:
    """Whether the text is a country or a subdivision of one."""
    return region.partition("-")[0] in COUNTRIES


def overlap(region: str | None, wanted: frozenset[str], groups: Mapping[str, Iterable[str]]) -> bool:
    """Whether somebody in `region` may be in one of `wanted` (codes). Unknown regions may be anywhere."""
    if region is None:
        return True
    if region in groups:
        return any(overlap(member, wanted, {}) for member in groups[region])
    if not is_code(region):
        return True
    country, dash, _ = region.partition("-")
    if region in wanted or country in wanted:
        return True
    return not dash and any(code.startswith(f"{country}-") for code in wanted)
