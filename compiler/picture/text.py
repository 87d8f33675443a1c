"""Text in SVG and HTML: escaping, clipping, and how wide it will be."""

from __future__ import annotations

import html

SANS = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

_NARROW, _BROAD = "fijlrtI.,:;|!'()[]{} -", "mwMWABCDEGHNOQRSUVXYZ@%"


def escape(value: object) -> str:
    """Text of ``value`` that is safe in HTML and SVG, in attributes too.

    Control characters, which XML cannot hold, and halves of surrogate pairs, which no file can,
    become a replacement character.
    """
    text = "".join("\N{REPLACEMENT CHARACTER}" if _is_odd(c) else c for c in str(value))
    return html.escape(text, quote=True)


def clip(text: str, most: int, tail: bool = False) -> str:
    """At most ``most`` characters of ``text``; ``tail`` keeps its end instead of its beginning."""
    if len(text) <= most:
        return text
    return "…" + text[-(most - 1) :] if tail else text[: most - 1] + "…"


def width_of(text: str, size: float, mono: bool = False, bold: bool = False) -> float:
    """Width of ``text`` in a font of ``size`` px, on the safe side of common fonts."""
    if mono:
        return 0.61 * size * len(text)
    units = sum(0.37 if c in _NARROW else 0.83 if c in _BROAD else 0.61 for c in text)
    return units * size * (1.12 if bold else 1.0)


def _is_odd(character: str) -> bool:
    return (character < " " and character not in "\n\t") or "\ud800" <= character <= "\udfff"
