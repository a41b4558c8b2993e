"""Pieces of the report's page. Everything that comes from data is escaped here, in one place."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template

from matplotlib.figure import Figure

from echostill.eval.reporting.figures import to_svg

_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
$header
<div class="layout">
<nav aria-label="Sections"><ol>
$contents
</ol></nav>
<main id="main">
$sections
</main>
</div>
<footer><p>Made by echostill $version. This file needs nothing but itself.</p></footer>
</body>
</html>
"""
)


@dataclass(frozen=True)
class Html:
    """Text that is markup already; plain strings are escaped wherever they enter the page."""

    markup: str

    def __str__(self) -> str:
        return self.markup


Content = str | int | float | Html


def text(content: Content) -> str:
    """Return markup as it is and anything else escaped."""
    if isinstance(content, Html):
        return content.markup
    if isinstance(content, int) and not isinstance(content, bool):
        return f"{content:,}"
    return html.escape(str(content))


def signed(number: float, digits: int) -> str:
    """Write a number with its sign, the minus as long as the plus."""
    return f"{number:+.{digits}f}".replace("-", "−")


def join(pieces: Iterable[Html]) -> Html:
    """Put pieces one after another."""
    return Html("\n".join(piece.markup for piece in pieces))


def paragraph(content: Content, kind: str = "") -> Html:
    """A paragraph; the kind is a CSS class."""
    return Html(f"<p{_class(kind)}>{text(content)}</p>")


def note(content: Content, *, warning: bool = False) -> Html:
    """A remark set apart; a warning says so in words, not by colour alone."""
    word = "Warning" if warning else "Note"
    kind = "note warning" if warning else "note"
    return Html(f'<p class="{kind}" role="note"><strong>{word}:</strong> {text(content)}</p>')


def heading(content: Content) -> Html:
    """A heading inside a section."""
    return Html(f"<h3>{text(content)}</h3>")


def figure(drawing: Figure, name: str, caption: Content, *, wide: bool = False) -> Html:
    """A drawn figure with its caption, which also describes it to those who cannot see it."""
    plain = caption.markup if isinstance(caption, Html) else str(caption)
    svg = to_svg(drawing, name, plain)
    frame = f'<div class="scroll" tabindex="0">{svg}</div>' if wide else svg
    return Html(f"<figure{_class('wide' if wide else '')}>{frame}{_caption(caption)}</figure>")


def picture(uri: str, alternative: str, caption: Content) -> Html:
    """An embedded picture with its caption."""
    source, described = html.escape(uri), html.escape(alternative)
    image = f'<img src="{source}" alt="{described}" loading="lazy">'
    return Html(f'<figure class="picture">{image}{_caption(caption)}</figure>')


def grid(pieces: Sequence[Html]) -> Html:
    """Figures side by side where there is room."""
    return Html(f'<div class="grid">{join(pieces)}</div>')


def table(
    headings: Sequence[Content],
    rows: Sequence[Sequence[Content]],
    caption: Content,
    *,
    words: frozenset[int] = frozenset({0}),
    kind: str = "",
) -> Html:
    """A table whose first column heads its rows.

    Args:
        headings: A heading per column.
        rows: Cells; numbers are grouped by thousands.
        caption: What the table shows.
        words: Columns that hold words and are set to the left.
        kind: CSS class.
    """

    def cell(tag: str, column: int, content: Content) -> str:
        scope = {"th": ' scope="col"', "rowth": ' scope="row"', "td": ""}[tag]
        name = "td" if tag == "td" else "th"
        return (
            f"<{name}{scope}{_class('' if column in words else 'number')}>{text(content)}</{name}>"
        )

    head = "".join(cell("th", column, content) for column, content in enumerate(headings))
    body = "\n".join(
        "<tr>"
        + "".join(cell("td" if column else "rowth", column, c) for column, c in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return Html(
        f'<div class="scroll" tabindex="0"><table{_class(kind)}><caption>{text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def thumbnail(
    uri: str | None,
    alternative: str,
    lines: Sequence[Content] = (),
    *,
    selected: bool | None = None,
) -> Html:
    """A small picture; selected ones carry a mark beside their accent, not colour alone."""
    described = html.escape(alternative)
    image = (
        f'<img src="{html.escape(uri)}" alt="{described}" loading="lazy">'
        if uri
        else f'<span class="missing" role="img" aria-label="{described}">no picture</span>'
    )
    mark = '<span class="mark" aria-hidden="true">✓</span>' if selected else ""
    captions = "".join(
        f'<span class="{"line" if place else "name"}">{text(line)}</span>'
        for place, line in enumerate(lines)
    )
    return Html(f"<li{_class('selected' if selected else '')}>{image}{mark}{captions}</li>")


def thumbnails(items: Sequence[Html], *, large: bool = False) -> Html:
    """A row of thumbnails."""
    return Html(f'<ul class="thumbnails{" large" if large else ""}">{join(items)}</ul>')


def details(summary: Content, content: Html) -> Html:
    """Something that is opened on demand."""
    return Html(f"<details><summary>{text(summary)}</summary>{content}</details>")


def code(content: str) -> Html:
    """Lines of code."""
    return Html(f'<pre tabindex="0"><code>{html.escape(content)}</code></pre>')


@dataclass(frozen=True)
class Section:
    """A section of the report."""

    identifier: str
    title: str
    content: Html


@dataclass(frozen=True)
class KeyNumber:
    """A number of the header with what it counts."""

    value: str
    label: str
    detail: str = ""


def header(title: Content, headline: Content, numbers: Sequence[KeyNumber]) -> Html:
    """The top of the page: title, what came out, the key numbers."""
    cells = "".join(
        f"<div><dt>{text(number.label)}</dt><dd>{text(number.value)}"
        f"{f'<small>{text(number.detail)}</small>' if number.detail else ''}</dd></div>"
        for number in numbers
    )
    return Html(
        f'<header><p class="kicker">echostill report</p><h1>{text(title)}</h1>'
        f'<p class="headline">{text(headline)}</p><dl class="numbers">{cells}</dl></header>'
    )


def page(title: str, top: Html, sections: Sequence[Section], version: str) -> str:
    """Put the page together."""
    contents = "\n".join(
        f'<li><a href="#{section.identifier}">{text(section.title)}</a></li>'
        for section in sections
    )
    body = "\n".join(
        f'<section id="{section.identifier}" aria-labelledby="{section.identifier}-title">'
        f'<h2 id="{section.identifier}-title">{text(section.title)}</h2>\n'
        f"{section.content}</section>"
        for section in sections
    )
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return _PAGE.substitute(
        title=html.escape(title),
        style=style,
        header=top,
        contents=contents,
        sections=body,
        version=html.escape(version),
    )


def _caption(caption: Content) -> str:
    return f"<figcaption>{text(caption)}</figcaption>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
