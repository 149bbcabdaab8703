"""The page: one HTML file without any other, readable in the dark, on a phone, aloud, on paper."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from ..plots import Figure

escape = html.escape

START = "<!doctype html>"
STYLE = """
:root{--ground:#fff;--ink:#1b1f24;--quiet:#4c5560;--line:#c3cad2;--soft:#f2f5f8;--link:#0a4f9e;
--warn:#7a3e00;--warnsoft:#fff3e0;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--ground:#14181d;--ink:#e8ecf1;--quiet:#aab4bf;
--line:#3e4853;--soft:#1e242b;--link:#8ec1ff;--warn:#ffcf8f;--warnsoft:#33260f}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--ground);color:var(--ink);
font:17px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
header,main,footer,nav.contents{max-width:68rem;margin:0 auto;padding:0 1.2rem}
header{padding-top:1.6rem}
h1{font-size:1.75rem;line-height:1.2;margin:.2rem 0 .4rem}
h2{font-size:1.35rem;margin:2.6rem 0 .6rem;padding-top:.6rem;border-top:2px solid var(--line)}
h3{font-size:1.12rem;margin:1.8rem 0 .4rem}
h4{font-size:1rem;margin:1.2rem 0 .3rem}
p,ul,ol,dl{margin:.5rem 0 .8rem;max-width:46rem}
a{color:var(--link)}
a:focus-visible,summary:focus-visible,.wide:focus-visible{outline:3px solid var(--link);
outline-offset:2px}
.skip{position:absolute;left:-99rem}
.skip:focus{left:.5rem;top:.5rem;background:var(--ground);padding:.5rem;z-index:2}
.quiet,.note,figcaption{color:var(--quiet);font-size:.9rem}
.note{max-width:52rem}
.banner{background:var(--warnsoft);color:var(--warn);border-left:5px solid currentColor;
padding:.6rem .9rem;margin:1rem 0;font-weight:600;max-width:none}
.answer{background:var(--soft);border-left:5px solid var(--link);padding:.8rem 1.1rem;
font-size:1.12rem;max-width:none}
nav.contents{margin-top:1rem}
nav.contents ol{columns:2;column-gap:2rem;padding-left:1.3rem;max-width:none}
.wide{overflow-x:auto;margin:.8rem 0;position:relative}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.2rem 0 .5rem}
caption>span{display:inline-block;position:sticky;left:0;max-width:min(60rem,calc(100vw - 2.6rem))}
th,td{padding:.28rem .65rem;text-align:right;vertical-align:top;white-space:nowrap}
tbody th,th.stub{text-align:left}
tbody th{font-weight:500}
th[scope=colgroup]{text-align:center;border-bottom:1px solid var(--line)}
thead tr:last-child>*,thead th[rowspan]{border-bottom:2px solid var(--line)}
tbody tr:nth-child(even){background:var(--soft)}
tr.rule>*{border-top:2px solid var(--line)}
tr.paper>*{font-style:italic;color:var(--quiet)}
table.text td,table.text th{white-space:normal;text-align:left}
table.text{width:100%}
figure{margin:1.4rem 0;break-inside:avoid}
figure .wide{margin:0}
figure img{max-width:100%;height:auto;background:#fff;border:1px solid var(--line);
display:block}
figcaption{margin-top:.4rem;max-width:52rem}
figcaption b{color:var(--ink)}
.flow{display:flex;flex-wrap:wrap;gap:0 1.5rem;list-style:none;padding:0;margin:1rem 0;
max-width:none}
.flow>li{flex:1 1 20rem}
.flow ol{list-style:none;padding:0;margin:0;max-width:none}
.flow ol>li{border:1px solid var(--line);background:var(--soft);border-radius:.3rem;
padding:.5rem .8rem;margin:0 0 1.5rem;position:relative}
.flow ol>li:not(:last-child)::after{content:"";position:absolute;left:1.6rem;bottom:-1.5rem;
height:1.5rem;border-left:2px solid var(--quiet)}
.flow ol>li:not(.out):not(:first-child)::before{content:"";position:absolute;top:-.5rem;
left:calc(1.6rem - 4px);border:5px solid transparent;border-top:.5rem solid var(--quiet);
border-bottom:0}
.flow ol>li.out{border-style:dashed;background:none;margin-left:4rem}
.flow ol>li.out::before{content:"";position:absolute;left:-2.4rem;width:2.4rem;top:50%;
border-top:2px dashed var(--quiet)}
.flow ol>li.out::after{left:-2.4rem;top:-2px;height:auto}
.flow .folds{margin:.3rem 0 0;padding-left:1.1rem;font-size:.9rem}
pre,code{font:.86rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace}
pre{background:var(--soft);padding:.7rem .9rem;overflow-x:auto;max-width:none}
code{overflow-wrap:anywhere}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;max-width:none}
dl.facts dt{color:var(--quiet)}dl.facts dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer;padding:.3rem 0}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);
white-space:nowrap}
footer{margin-top:3rem;padding-bottom:2rem;color:var(--quiet);font-size:.9rem}
@media (max-width:40rem){body{font-size:16px}figure img.broad{max-width:none;width:44rem}
nav.contents ol{columns:1}h1{font-size:1.4rem}
dl.facts{grid-template-columns:1fr}dl.facts dd{margin-bottom:.4rem}
table.text,table.text tbody,table.text tr,table.text th,table.text td{display:block;padding:.1rem 0}
table.text thead{position:absolute;clip-path:inset(50%)}
table.text tr{padding:.5rem .4rem;border-bottom:1px solid var(--line)}}
@media print{:root{--ground:#fff;--ink:#000;--quiet:#333;--line:#999;--soft:#f4f4f4;--link:#000;
--warn:#000;--warnsoft:#eee}body{font-size:10pt}header,main,footer,nav.contents{max-width:none;
padding:0}h2,h3,h4,caption{break-after:avoid}tr,.answer,.flow li{break-inside:avoid}
details::details-content{content-visibility:visible;height:auto}
.wide{overflow:visible}table{font-size:8pt}th,td{padding:.15rem .35rem}a{text-decoration:none}
.skip{display:none}@page{size:A4;margin:15mm}}
"""


def page(
    title: str, lead: str, sections: list[tuple[str, str, str]], foot: str, kind="mdmt report"
) -> str:
    """The whole file. sections: [(id, heading, HTML)]; lead goes above the contents; kind: what
    made it."""
    contents = "".join(f'<li><a href="#{i}">{escape(h)}</a></li>' for i, h, _ in sections)
    body = "\n".join(
        f'<section aria-labelledby="{i}">\n<h2 id="{i}">{escape(h)}</h2>\n{text}\n</section>'
        for i, h, text in sections
    )
    return f"""{START}
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<p class="quiet">{escape(kind)}</p>
<h1>{escape(title)}</h1>
{lead}
</header>
<nav class="contents" aria-label="Contents"><ol>{contents}</ol></nav>
<main id="main" tabindex="-1">
{body}
</main>
<footer>
{foot}
</footer>
</body>
</html>
"""


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{f' class={chr(34)}{style}{chr(34)}' if style else ''}>{escape(text)}</p>"


def listing(items, ordered: bool = False) -> str:
    """A list of plain texts; nothing for none."""
    items = list(items)
    kind = "ol" if ordered else "ul"
    inside = "".join(f"<li>{escape(i)}</li>" for i in items)
    return f"<{kind}>{inside}</{kind}>" if items else ""


def facts(pairs) -> str:
    """Names with their values."""
    inside = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs)
    return f'<dl class="facts">{inside}</dl>'


def text_table(caption: str, heads: list[str], rows: list[list[str]]) -> str:
    """A table of sentences; the first column is the row's header."""
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in heads)
    body = "".join(
        "<tr>"
        + f'<th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(c)}</td>" for c in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<table class="text"><caption><span>{escape(caption)}</span></caption>'
        f"<thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def picture(folder: Path, figure: Figure) -> str:
    """A figure with its image inside the page."""
    import struct

    raw = (Path(folder) / f"{figure.name}.png").read_bytes()
    width, height = struct.unpack(">II", raw[16:24])
    data = base64.b64encode(raw).decode()
    broad = ' class="broad"' if width > 1.8 * height else ""
    return (
        f'<figure><div class="wide" role="region" tabindex="0" '
        f'aria-label="{escape(figure.title, quote=True)}"><img{broad} '
        f'src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(figure.alt, quote=True)}"></div>'
        f"<figcaption><b>{escape(figure.title)}.</b> {escape(figure.caption)}</figcaption></figure>"
    )
