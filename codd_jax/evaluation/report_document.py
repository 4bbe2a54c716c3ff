"""A report's content apart from its form: headings, paragraphs, tables, figures and folded details, as Markdown and as
one HTML file that needs nothing beside it."""

import base64
import dataclasses
import html
import pathlib
import re
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Heading:
    """A section's title."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Running text; `code` in backquotes and **strong** words keep their meaning."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list of lines, marked up as paragraphs are."""

    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text. The first column is left-aligned, the others right-aligned unless `left` names their places."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: tuple[int, ...] = (0,)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plot: its file in the report's folder as SVG, and what it shows."""

    svg: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Details:
    """Text as it stands behind a summary line."""

    summary: str
    text: str


Block = Heading | Paragraph | Bullets | Table | Figure | Details

STYLE = """
:root { --ink: #1c2430; --soft: #5c6675; --line: #dfe4ea; --back: #ffffff; --band: #f6f8fa; --accent: #2a6fbb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e9ef; --soft: #9aa5b4; --line: #2d3641; --back: #14181e; --band: #1b212a; --accent: #7db4ee; }
  figure img { background: #fff; border-radius: 6px; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 5rem; max-width: 80rem; color: var(--ink); background: var(--back);
  font: 15px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { max-width: 62rem; margin: .5rem 0 .9rem; color: var(--soft); }
ul { padding-left: 1.2rem; margin: .4rem 0 .9rem; color: var(--soft); }
li { margin: .2rem 0; }
p strong, li strong { color: var(--ink); font-weight: 600; }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .38rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); vertical-align: bottom; }
.l { text-align: left; }
tbody tr:hover { background: var(--band); }
td small { color: var(--soft); font-size: .85em; }
code, pre { font: .85em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
code { background: var(--band); padding: .1em .3em; border-radius: 4px; }
figure { display: inline-block; width: min(36rem, 100%); margin: .8rem 1rem 1.2rem 0; vertical-align: top; }
figure img { width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .4rem; }
details { border: 1px solid var(--line); border-radius: 8px; margin: .5rem 0; background: var(--band); }
summary { cursor: pointer; padding: .5rem .9rem; font-weight: 600; }
details pre { margin: 0; padding: .2rem .9rem .9rem; overflow-x: auto; }
"""


def to_markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown; figures are linked."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def to_html(title: str, blocks: Sequence[Block], folder: pathlib.Path) -> str:
    """The blocks as one HTML page, figures inlined from `folder`. All text is escaped."""
    body = "\n".join(_html(block, folder) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_markdown_text(text)}"
        case Paragraph(text):
            return _markdown_text(text)
        case Bullets(lines):
            return "\n".join(f"- {_markdown_text(line)}" for line in lines)
        case Table(header, rows, left):
            cells = [
                [cell.replace("|", r"\|").replace("\n", "<br>") for cell in map(_markdown_text, row)] for row in rows
            ]
            rule = [":---" if place in left else "---:" for place in range(len(header))]
            return "\n".join(f"| {' | '.join(row)} |" for row in ([*map(_markdown_text, header)], rule, *cells))
        case Figure(svg, caption):
            return f"![{_markdown_text(caption)}]({svg})"
        case Details(summary, text):
            fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
            return f"<details><summary>{html.escape(summary)}</summary>\n\n{fence}\n{text}\n{fence}\n\n</details>"


def _markdown_text(text: str) -> str:
    """Text whose angle brackets are no HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _html(block: Block, folder: pathlib.Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_html_text(text)}</p>"
        case Bullets(lines):
            return "<ul>" + "".join(f"<li>{_html_text(line)}</li>" for line in lines) + "</ul>"
        case Table(header, rows, left):
            mark = [' class="l"' if place in left else "" for place in range(len(header))]
            head = "".join(f"<th{kind}>{_html_text(cell)}</th>" for kind, cell in zip(mark, header, strict=True))
            lines = [
                "<tr>"
                + "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(mark, row, strict=True))
                + "</tr>"
                for row in rows
            ]
            lines = "\n".join(lines)
            return (
                f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'
            )
        case Figure(svg, caption):
            data = base64.b64encode((folder / svg).read_bytes()).decode()
            picture = f'<img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{data}">'
            return f"<figure>{picture}<figcaption>{_html_text(caption)}</figcaption></figure>"
        case Details(summary, text):
            return f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>"


def _cell(text: str) -> str:
    """A cell: what stands below its first line is smaller."""
    first, *below = text.split("\n")
    return _html_text(first) + "".join(f"<br><small>{_html_text(line)}</small>" for line in below)


def _html_text(text: str) -> str:
    escaped = html.escape(text)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", escaped).replace("\n", "<br>")
