"""Pages as a reader sees them: opened in a real browser with the network cut."""

import json
import re
import subprocess

import numpy as np
import pytest
from browser import BROWSER, NEEDED
from PIL import Image

from mmlens import HookedMLLM
from mmlens.tour import tour

pytestmark = [
    pytest.mark.slow,
    NEEDED,
]


def opened(page, folder):
    """Return what the browser shows of a page, [height, width, 3], the URLs that it asked for, and its console's lines."""
    shot, log = folder / "shot.png", folder / "net.json"
    quiet = ("quic", "background-networking", "component-update", "sync", "default-apps", "domain-reliability")
    ended = subprocess.run(
        [
            str(BROWSER),
            *(
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--hide-scrollbars",
                "--enable-logging=stderr",
            ),
            *(f"--disable-{name}" for name in quiet),
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={log}",
            f"--screenshot={shot}",
            "--window-size=1100,10200",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    events = json.loads(log.read_text())["events"]
    urls = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    said = [line for line in ended.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return np.asarray(Image.open(shot).convert("RGB")), urls, said


def colour(pixels):
    """Return the share of pixels that are clearly coloured: headings, text and tables are not."""
    return (np.ptp(pixels.astype(int), axis=-1) > 60).mean()


def test_the_tours_page_asks_the_network_for_nothing_and_shows_its_figures(tmp_path):
    model = HookedMLLM.from_pretrained("pictoworld", device="cpu")
    page = tour(model, tmp_path, scenes=2, draws=2).path
    pixels, urls, said = opened(page, tmp_path)
    assert not said, f"the page's console says {said}"
    assert "google" not in page.read_text()  # so that these requests are the browser's own
    asked = {url for url in urls if url.startswith(("http:", "https:", "ws:")) and "google" not in url}
    assert not asked, f"the page asked for {asked}"
    without = tmp_path / "without-pictures.html"
    without.write_text(re.sub(r'src="data:[^"]*"', "", page.read_text()))
    assert colour(pixels) > 5 * colour(opened(without, tmp_path)[0])
