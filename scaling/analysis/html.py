"""The parts that pages are made of: one file that opens anywhere, with every figure inside it and nothing fetched."""

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

CSS = """
:root { --ink: #1c1c1c; --soft: #5c5c5c; --line: #dcdcdc; --paper: #fdfdfc; --card: #ffffff; --note: #f4f3ef;
  --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e4df; --soft: #a5a29b; --line: #3a3936; --paper: #1a1a19; --card: #ffffff; --note: #262523;
    --mark: #6db6e8; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 "Charter", "Iowan Old Style", "Source Serif 4", "Georgia", "Cambria", serif; }
main { max-width: 50rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1, h2, h3, th, .label, figcaption, .code { font-family: "Inter", "Helvetica Neue", "Segoe UI", "Arial", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; letter-spacing: -0.01em; margin: 3rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p, ul { margin: .6rem 0; } li { margin: .3rem 0; }
.lead { color: var(--soft); margin: 0 0 1.6rem; }
.answer { background: var(--note); border-left: 3px solid var(--mark); padding: .9rem 1.2rem; margin: 1.2rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: .88rem;
  font-variant-numeric: tabular-nums lining-nums; }
th { text-align: right; font-weight: 600; font-size: .76rem; color: var(--soft);
  vertical-align: bottom; }
td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.words { white-space: normal; text-align: left; } th.words { text-align: left; }
th, td { padding: .34rem .6rem; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 1.5px solid var(--soft); }
.ci { color: var(--soft); }
figure { margin: 1.4rem 0; break-inside: avoid; }
figure .plot { background: var(--card); border-radius: 4px; padding: .6rem; }
figure svg { display: block; width: 100%; max-width: 44rem; height: auto; margin: 0 auto; }
figcaption { font-size: .82rem; line-height: 1.45; color: var(--soft); margin-top: .5rem; }
.code { font-size: .72rem; color: var(--soft); border: 1px solid var(--line); border-radius: 3px;
  padding: .05rem .35rem; white-space: nowrap; }
pre { font-size: .78rem; line-height: 1.4; overflow-x: auto; background: var(--note); padding: .8rem 1rem; }
summary { cursor: pointer; } .hash { overflow-wrap: anywhere; }
sup { line-height: 0; }
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --note: #f4f3ef; --mark: #0072b2; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } h2, table { break-after: avoid; }
  tr { break-inside: avoid; } }
"""


def document(title: str, body: str) -> str:
    """A whole page that fetches nothing and runs nothing."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def sections(parts: Sequence[tuple[str, str]]) -> str:
    """The parts of a page under their headings; an empty part has none, and a part without a heading stands first."""
    return "\n".join((f"<h2>{heading}</h2>\n" if heading else "") + text for heading, text in parts if text)


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
    said = escape(label, quote=True)
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{said}">', text, count=1
    )


def figure(svg: str, name: str, caption: str) -> str:
    """A drawing with its caption below."""
    drawing = inline_svg(svg, name, caption.split(".")[0])
    return f'<figure><div class="plot">{drawing}</div><figcaption>{escape(caption)}</figcaption></figure>\n'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], wordy: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; columns in `wordy` hold prose."""
    kind = ['class="words"' if i in wordy else "" for i in range(len(header))]
    head = "".join(f"<th {k}>{cell}</th>" for k, cell in zip(kind, header, strict=True))
    lines = ["".join(f"<td {k}>{cell}</td>" for k, cell in zip(kind, row, strict=True)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines).replace("<td >", "<td>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'.replace(
        "<th >", "<th>"
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


def bullets(sentences: Sequence[str]) -> str:
    """Sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences) + "</ul>\n"
