"""A web page in one file that can be mailed: no scripts, nothing from elsewhere, all text escaped.

Every function returns HTML and takes plain text, but for `document` and `section`, which take HTML.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from mixer_dist.eval.look import DARK, LIGHT, Palette
from mixer_dist.eval.report.picture import Picture

MAX_SWITCHED = 3

# The policy keeps the promise above, also for a browser that finds a hole in the escaping.
_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark; $light }
@media (prefers-color-scheme: dark) { :root { $dark } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 68rem;
       font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
       background: var(--background); color: var(--text); }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
p { max-width: 44rem; }
.address { margin: .25rem 0 1.25rem; color: var(--muted); overflow-wrap: anywhere;
           font: .875rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
progress { width: 100%; height: .5rem; border: 0; border-radius: .25rem; overflow: hidden;
           appearance: none; background: var(--grid); accent-color: var(--primary); }
progress::-webkit-progress-bar { background: var(--grid); }
progress::-webkit-progress-value { background: var(--primary); }
progress::-moz-progress-bar { background: var(--primary); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem 1.5rem;
     margin: 1.25rem 0 0; }
dt { color: var(--muted); font-size: .8125rem; }
dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.scroll { overflow: auto; max-height: 26rem; margin-top: 1rem; }
table { border-collapse: collapse; font-size: .9375rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem 1.25rem .4rem 0; text-align: left; border-bottom: 1px solid var(--grid); }
th { color: var(--muted); font-weight: 500; font-size: .8125rem; vertical-align: bottom;
     position: sticky; top: 0; background: var(--background); }
td.number, th.number { text-align: right; }
@media (max-width: 40rem) {
  td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
}
@media (min-width: 40rem) {
  td:first-child, th:first-child { position: sticky; left: 0; background: var(--background); }
  th:first-child { z-index: 1; }
}
td { white-space: nowrap; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; }
.switch span { margin-right: .75rem; color: var(--muted); font-size: .875rem; }
.switch input { position: absolute; opacity: 0; }
.switch label { display: inline-block; padding: .25rem .8rem; margin: 0 .35rem .5rem 0;
                border: 1px solid var(--grid); border-radius: 1rem; font-size: .875rem;
                cursor: pointer; }
.switch input:checked + label { border-color: var(--primary); color: var(--primary); }
.switch input:focus-visible + label { outline: 2px solid var(--primary); outline-offset: 2px; }
.switch figure { display: none; }
.switch input:nth-of-type(1):checked ~ figure:nth-of-type(1),
.switch input:nth-of-type(2):checked ~ figure:nth-of-type(2),
.switch input:nth-of-type(3):checked ~ figure:nth-of-type(3) { display: block; }
footer { margin-top: 3rem; border-top: 1px solid var(--grid); color: var(--muted);
         font-size: .9375rem; }
footer h2 { margin-top: 1.25rem; color: var(--text); }
</style>
</head>
<body>
$body
</body>
</html>
""")


@dataclass(frozen=True)
class Column:
    """The head of a table's column."""

    heading: str
    is_number: bool = False


def document(title: str, *parts: str) -> str:
    """A whole document; its parts are HTML."""
    return _PAGE.substitute(
        title=escape(title), light=_variables(LIGHT), dark=_variables(DARK), body="\n".join(parts)
    )


def section(heading: str, *parts: str, tag: str = "section") -> str:
    """A part of the page under its heading; its parts are HTML."""
    return "\n".join([f"<{tag}>", f"<h2>{escape(heading)}</h2>", *parts, f"</{tag}>"])


def header(title: str, address: str, facts: Mapping[str, str], progress: float | None) -> str:
    """The top of the page: what it is about, how far it is (0 to 1), and facts by name."""
    bar = "" if progress is None else _bar(progress)
    items = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return (
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="address">{escape(address)}</p>\n'
        f"{bar}<dl>\n{chr(10).join(items)}\n</dl>\n</header>"
    )


def paragraph(text: str) -> str:
    """One paragraph."""
    return f"<p>{escape(text)}</p>"


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is wide or long."""
    heads = "".join(
        f'<th scope="col"{_class(column)}>{escape(column.heading)}</th>' for column in columns
    )
    body = "\n".join(_row(columns, row) for row in rows)
    return (
        f'<div class="scroll">\n<table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def picture(shown: Picture) -> str:
    """A picture within the page."""
    sources = (
        f'<source media="{escape(media)}" srcset="{_data_uri(other)}">'
        for media, other in shown.instead.items()
    )
    image = f'<img src="{_data_uri(shown.png)}" alt="{escape(shown.description)}">'
    return "\n".join(["<figure>", "<picture>", *sources, image, "</picture>", "</figure>"])


def switched(question: str, pictures: Mapping[str, Picture]) -> str:
    """Pictures of which one is shown, chosen by name; at most MAX_SWITCHED, one `switched` a page.

    Radio buttons and style do that, since the page runs no script.
    """
    assert len(pictures) <= MAX_SWITCHED
    if len(pictures) == 1:
        return picture(*pictures.values())
    buttons = (
        f'<input type="radio" name="switch" id="switch-{i}"{" checked" if i == 0 else ""}>'
        f'<label for="switch-{i}">{escape(name)}</label>'
        for i, name in enumerate(pictures)
    )
    return "\n".join([
        f'<div class="switch" role="group" aria-label="{escape(question)}">',
        f"<span>{escape(question)}</span>", *buttons, *map(picture, pictures.values()), "</div>",
    ])  # fmt: skip


def _bar(progress: float) -> str:
    return f'<progress value="{progress:.4f}" max="1">{progress:.0%}</progress>\n'


def _row(columns: Sequence[Column], cells: Sequence[str]) -> str:
    written = (
        f"<td{_class(column)}>{escape(cell)}</td>"
        for column, cell in zip(columns, cells, strict=True)
    )
    return f"<tr>{''.join(written)}</tr>"


def _class(column: Column) -> str:
    return ' class="number"' if column.is_number else ""


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _variables(palette: Palette) -> str:
    names = ("background", "text", "muted", "grid", "primary")
    return " ".join(f"--{name}: {getattr(palette, name)};" for name in names)
