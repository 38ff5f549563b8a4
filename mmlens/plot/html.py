"""Pages that stand alone: one file in which every text is escaped, every picture inlined, and nothing is fetched."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5b6570; --ground: #fbfaf8; --line: #dcd9d3; --mark: #a93226; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e3; --soft: #a9b0b7; --ground: #16191c; --line: #363c42; --mark: #ff9d8a; }
}
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; background: var(--ground); color: var(--ink);
  font: 17px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
.soft { color: var(--soft); font-size: .9rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid var(--line); padding: .15rem .9rem .15rem 0; text-align: right; }
td:first-child, th:first-child { text-align: left; }
"""


@dataclass(frozen=True, repr=False)
class Page:
    """A whole HTML page that needs nothing else; a notebook shows it, `height` pixels high, in a frame of its own."""

    html: str
    height: int = 800

    def __repr__(self) -> str:
        return f"Page({len(self.html.encode()):,} bytes; save it, or show it in a notebook)"

    def save(self, path: str | Path) -> Path:
        """Return `path`, to which the page was written."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{escape(self.html)}" title="a page of mmlens" '
            f'style="width: 100%; height: {self.height}px; border: 0"></iframe>'
        )


def document(title: str, body: str, *, style: str = "", script: str = "", data: Mapping[str, Any] | None = None) -> str:
    """Return a whole page around `body`, which may fetch nothing and run nothing but `script`.

    The script finds `data` as JSON in the element of that id.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    code = ""
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        code = f'<script type="application/json" id="data">{inert(data or {})}</script>\n<script>{script}</script>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>
<style>{STYLE}{style}</style></head><body>
{body}
{code}</body></html>
"""


def inert(data: Any) -> str:
    """Return JSON that cannot end the element it stands in: no character of it is markup, or beyond ASCII."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def uri(data: bytes) -> str:
    """Return a PNG or JPEG file as a URI that holds it."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def img(data: bytes, alt: str, *, width: int | None = None) -> str:
    """Return an image of the page, with the words that stand for it."""
    size = f' width="{width}"' if width else ""
    return f'<img src="{uri(data)}" alt="{escape(alt)}"{size}>'


def encoded(image: Image.Image) -> bytes:
    """Return the image as a small PNG file."""
    with BytesIO() as buffer:
        image.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()


def compressed(image: Image.Image, *, side: int = 640) -> bytes:
    """Return the image at no more than `side` pixels: as it is where it is small, else a JPEG file."""
    shown = image.convert("RGB")
    if max(shown.size) <= 128:
        return encoded(shown)
    shown.thumbnail((side, side))
    with BytesIO() as buffer:
        shown.save(buffer, format="JPEG", quality=82, optimize=True)
        return buffer.getvalue()
