"""The parts that pages are made of: one file that opens anywhere, with every figure inside it and nothing fetched."""

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from scaling.analysis.reporting.css import CSS


def document(title: str, body: str) -> str:
    """A whole page that fetches nothing and runs nothing. A name of a file that is no Unicode is shown with escapes."""
    page = (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    return page.encode("utf-8", "backslashreplace").decode()


def sections(parts: Sequence[tuple[str, str]]) -> str:
    """The parts of a page under their headings; an empty part has none, and a part without a heading stands first."""
    return "\n".join(
        (f'<h2 id="{anchor(heading)}">{heading}</h2>\n' if heading else "") + text for heading, text in parts if text
    )


def contents(parts: Sequence[tuple[str, str]]) -> str:
    """The table of contents of the parts that `sections` shows."""
    lines = "".join(
        f'<li><a href="#{anchor(heading)}">{heading}</a></li>\n' for heading, text in parts if heading and text
    )
    return f'<nav aria-label="Contents"><ol>\n{lines}</ol></nav>\n'


def anchor(heading: str) -> str:
    """The identifier of a heading: "The noise floor" -> "the-noise-floor"."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def folded(summary: str, content: str) -> str:
    """Content that shows when its summary is clicked."""
    return f"<details><summary>{summary}</summary>{content}</details>\n"


def inline_svg(text: str, name: str, label: str) -> str:
    """An SVG document as an element of a page: no XML prologue, no metadata, and identifiers of its own.

    label: what a screen reader says of it.
    """
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", text)
    said = escape(label, quote=True)  # by a function: in a template, backslashes of the label would mean something
    head = re.compile(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>')
    return head.sub(lambda found: f'<svg viewBox="{found[1]}" role="img" aria-label="{said}">', text, count=1)


def figure(svg: str, name: str, caption: str, number: int | None = None) -> str:
    """A drawing with its caption below, and its number before that; its first sentence is what a screen reader
    says."""
    drawing = inline_svg(svg, name, caption.split(". ")[0].rstrip("."))
    counted = "" if number is None else f"<strong>Figure {number}.</strong> "
    return f'<figure><div class="plot">{drawing}</div><figcaption>{counted}{escape(caption)}</figcaption></figure>\n'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], wordy: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; columns in `wordy` hold prose. It scrolls within its own box where the
    screen is narrower."""
    kinds = [' class="words"' if i in wordy else "" for i in range(len(header))]
    head = "".join(f'<th scope="col"{kind}>{cell}</th>' for kind, cell in zip(kinds, header, strict=True))
    lines = ["".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'
    )


def flops(value: float) -> str:
    """5e11 -> 5 x 10^11 in HTML."""
    mantissa, exponent = f"{value:.2e}".split("e")
    ten = f"10<sup>{int(exponent)}</sup>"
    return ten if float(mantissa) == 1 else f"{float(mantissa):g}&thinsp;&times;&thinsp;{ten}"


def est(value: dict[str, Any], say: Callable[[float], str] = "{:.3f}".format) -> str:
    """An EST in HTML: the value, and its interval behind it."""
    if value["value"] is None:
        return "&ndash;"
    if value["ci"] is None:
        return f'{say(value["value"])} <span class="ci">(no interval)</span>'
    low, high = (say(x) for x in value["ci"])
    return f'{say(value["value"])} <span class="ci">[{low}, {high}]</span>'


def prose(sentences: Sequence[str]) -> str:
    """Sentences as one paragraph; none: nothing."""
    return f"<p>{escape(' '.join(sentences))}</p>\n" if sentences else ""


def bullets(sentences: Sequence[str]) -> str:
    """Sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences) + "</ul>\n"
