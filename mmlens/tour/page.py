"""One self-contained page: every text escaped, every figure inlined, nothing fetched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

from matplotlib.figure import Figure
from PIL import Image

from mmlens.plot.canvas import png
from mmlens.plot.html import document, encoded, img

BUDGET = 1_800_000  # bytes of all figures: in base64, with the picture, they stay below 3 MB
STYLE = """
body { max-width: 62rem; }
body { counter-reset: step; }
h2 { font-size: 1.2rem; margin: 3rem 0 .4rem; }
section h2::before { counter-increment: step; content: counter(step) ". "; color: var(--soft); }
figcaption, footer { color: var(--soft); font-size: .9rem; }
.main { border-left: 5px solid var(--mark); padding: .2rem 0 .2rem 1rem; font-size: 1.25rem; }
.asked { display: flex; gap: 1.2rem; align-items: center; } .asked img { width: 9rem; max-height: 12rem; object-fit: contain;
  image-rendering: auto; border-radius: 4px; }
figure { margin: .8rem 0; } figure img { max-width: 100%; height: auto; background: white; padding: .6rem;
  box-sizing: border-box; border: 1px solid var(--line); border-radius: 6px; }
footer dt { font-weight: 600; } footer dd { margin: 0 0 .3rem 1rem; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Section:
    """A question, the sentence that answers it, the figure that the sentence reads from, and how to read the figure."""

    heading: str
    sentence: str
    figure: Figure | None = None
    alt: str = ""
    reading: str = ""
    table: Sequence[Sequence[str]] = ()


def page(
    *,
    title: str,
    picture: Image.Image,
    asked: str,
    answer: str,
    sentence: str,
    beside: str,
    sections: Sequence[Section],
    provenance: Mapping[str, str],
) -> str:
    """Return the whole HTML page: what was asked, the main sentence with its rate beside it, the sections, provenance."""
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in provenance.items())
    drawn = [None if section.figure is None else png(section.figure) for section in sections]
    sizes = [len(data) for data in drawn if data is not None]
    most = max(sizes, default=0) if sum(sizes) <= BUDGET else BUDGET // len(sizes)
    body = f"""<h1>{escape(title)}</h1>
<div class="asked">{img(_picture(picture), "The picture that the question is about")}
<p><span class="soft">asked</span> {escape(asked)}<br>
<span class="soft">answered</span> <b>{escape(answer) or "(nothing)"}</b></p></div>
<p class="main">{escape(sentence)}</p><p>{escape(beside)}</p>
{"".join(_section(section, data, most) for section, data in zip(sections, drawn, strict=True))}
<footer><h2>Where this came from</h2><dl>{listed}</dl></footer>"""
    return document(title, body, style=STYLE)


def _section(section: Section, data: bytes | None, most: int) -> str:
    drawn = ""
    if section.figure is not None and data is not None:
        reading = f"<figcaption>{escape(section.reading)}</figcaption>" if section.reading else ""
        shown = img(_small(section.figure, data, most), section.alt, width=_width(section.figure))
        drawn = f"<figure>{shown}{reading}</figure>"
    head = f"<h2>{escape(section.heading)}</h2><p>{escape(section.sentence)}</p>"
    return f"<section>{head}{drawn}{_table(section.table)}</section>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head, *body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    head = head.replace("<td>", "<th>").replace("</td>", "</th>")
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"


def _width(figure: Figure) -> int:
    """Return how wide the figure is shown, so that letters have the same size in all of them."""
    return round(96 * figure.get_size_inches()[0])


def _small(figure: Figure, data: bytes, most: int) -> bytes:
    """Return the figure as a PNG of at most so many bytes: fewer colours, then fewer pixels, where it needs more."""
    for dpi, colors in ((120, 256), (90, 256), (70, 64), (50, 32)):
        if len(data) <= most:
            break
        with Image.open(BytesIO(png(figure, dpi=dpi))) as drawn:
            data = encoded(drawn.convert("RGB").quantize(colors, dither=Image.Dither.NONE))
    return data


def _picture(image: Image.Image) -> bytes:
    """Return a thumbnail; a picture that is smaller is enlarged with hard edges, as it is."""
    shown = image.convert("RGB")
    if max(shown.size) > 320:
        shown.thumbnail((320, 320))
    else:
        factor = max(1, 288 // max(shown.size))
        shown = shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.NEAREST)
    return encoded(shown)
