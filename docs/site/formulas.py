"""Formulas of the pages, from LaTeX to MathML while the site is built.

A reader needs no script for them, and no network: the font is part of the site, the characters that
formulas need of the STIX Two Math that the package ziamath holds (SIL Open Font License).
"""

import functools
import html
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

from fontTools import subset
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FONT = "site/math.woff"
# What arithmatex leaves: \( \) within a line, \[ \] on lines of its own.
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
CHARACTERS = (
    *((0x20, 0x7E), (0xA0, 0xFF), (0x370, 0x3FF), (0x2010, 0x2040), (0x2100, 0x214F)),
    *((0x2190, 0x22FF), (0x239B, 0x23E1), (0x27E6, 0x27EF)),  # arrows, operators, brackets
    *((0x1D434, 0x1D467), (0x1D49C, 0x1D4CF), (0x1D6FC, 0x1D71B)),  # italic, script, Greek italic
)


@functools.cache
def font() -> bytes:
    """STIX Two Math with CHARACTERS and all that stretches, as a WOFF file."""
    package = importlib.util.find_spec("ziamath")
    assert package is not None
    assert package.origin is not None
    options = subset.Options(flavor="woff", hinting=False, layout_features=["*"])
    path = Path(package.origin).parent / "fonts/STIXTwoMath-Regular.ttf"
    whole = subset.load_font(str(path), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=[c for a, b in CHARACTERS for c in range(a, b + 1)])
    subsetter.subset(whole)
    kept = io.BytesIO()
    subset.save_font(whole, kept, options)
    return kept.getvalue()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the font beside the style sheet."""
    files.append(File.generated(config, FONT, content=font()))
    return files


def mathml(found: re.Match[str], display: str) -> str:
    """A formula of a page as MathML."""
    return convert(html.unescape(found[1]).strip(), display=display)


def on_page_content(content: str, **_: Any) -> str:
    """Turn every formula of a page into MathML."""
    content = INLINE.sub(lambda found: mathml(found, "inline"), content)
    return BLOCK.sub(
        lambda found: f'<div class="formula">{mathml(found, "block")}</div>',
        content,
    )
