"""Make class names drawable in plots: with a system font that has their letters, or transliterated to Latin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

OWN_FONT = "DejaVu Sans"  # ships with matplotlib
# System fonts with the letters of many languages.
FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Droid Sans Fallback", "PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei"),
    *("SimHei", "Malgun Gothic", "Yu Gothic", "Arial Unicode MS", "Noto Sans", "FreeSans", "Unifont"),
)


@dataclass(frozen=True)
class Lettering:
    """Fonts and transliterations for names in plots.

    Attributes:
        families: Fonts in order of preference, for each letter.
        shown: Transliteration of each name that no font can draw.
        note: A sentence on transliterated names; "" if there are none.
    """

    families: tuple[str, ...]
    shown: dict[str, str]
    note: str = ""

    def of(self, names: Iterable[str]) -> list[str]:
        """Return the text to draw for each name."""
        return [self.shown.get(name, name) for name in names]


def lettering(names: Sequence[str]) -> Lettering:
    """Choose the fonts and transliterations for these names."""
    families, missing = [OWN_FONT], {name for name in names if not _draws(OWN_FONT, name)}
    for family in FONTS if missing else ():
        drawn = {name for name in missing if _is_there(family) and _draws(family, name, OWN_FONT)}
        if drawn:
            families.append(family)
            missing -= drawn
    if not missing:
        return Lettering(tuple(families), {})
    from anyascii import anyascii

    shown = {name: anyascii(name) or "?" for name in sorted(missing)}
    example, latin = next(iter(shown.items()))
    note = f"no font of this system has the letters of {len(shown)} names, so the plots show {example} as {latin}"
    return Lettering(tuple(families), shown, note + (" and so on" if len(shown) > 1 else ""))


def _draws(family: str, text: str, otherwise: str | None = None) -> bool:
    fonts = [_font(family), *([_font(otherwise)] if otherwise else [])]
    return all(any(font.get_char_index(ord(letter)) for font in fonts) for letter in text)


@cache
def _is_there(family: str) -> bool:
    from matplotlib import font_manager

    return any(entry.name == family for entry in font_manager.fontManager.ttflist)


@cache
def _font(family: str) -> FT2Font:
    from matplotlib import font_manager

    return font_manager.get_font(font_manager.findfont(family, fallback_to_default=True))
