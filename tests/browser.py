"""A headless Chromium for tests of pages, told what to do by mouse and keys, with the network cut."""

import itertools
import json
import os
import shutil
import subprocess

import pytest

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
NEEDED = pytest.mark.skipif(BROWSER is None, reason="no browser here: install Debian's chromium to open pages")
CODES = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Browser:
    """A headless Chromium that is told what to do through a pipe (the DevTools protocol), and what it said of a page."""

    def __init__(self, folder):
        (read, self.write), (self.read, write) = os.pipe(), os.pipe()
        quiet = ("quic", "background-networking", "component-update", "sync", "default-apps", "domain-reliability")
        command = [
            *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"),
            *(f"--disable-{name}" for name in quiet),
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder}",
        ]
        ends = f'exec 3<&{read} 4>&{write}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", ends, "bash", *command],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self.numbers, self.events, self.left, self.session = itertools.count(1), [], b"", None

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.write)
        os.close(self.read)

    def __call__(self, method, **params):
        """Return what the browser answers to a command; what it says by itself meanwhile goes to `events`."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.left:
                chunk = os.read(self.read, 1 << 20)
                assert chunk, "the browser is gone"
                self.left += chunk
            text, _, self.left = self.left.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path):
        """Open a page in a tab of its own, and wait for it."""
        self.session = None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self(f"{domain}.enable")
        self.size(1400, 1100)
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        while self.ask("document.readyState") != "complete" or self.ask("location.protocol") != "file:":
            pass

    def size(self, width, height):
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def ask(self, script):
        """Return what a line of script gives in the page."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector, number=0):
        box = self.ask(
            f"(() => {{ const one = document.querySelectorAll({json.dumps(selector)})[{number}]; "
            "one.scrollIntoView({block: 'center'}); const b = one.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, *keys):
        for key in keys:
            text = {"Enter": "\r", "+": "+", "-": "-"}.get(key)
            more = {"text": text} if text else {}
            self(
                "Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=CODES.get(key, 0), **more
            )
            self("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=CODES.get(key, 0))

    def shown(self, selector):
        """Return how many elements of that kind are displayed."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.ask(f"{found}.filter(e => getComputedStyle(e).display != 'none').length")

    def said(self):
        """Return what the page logged, threw, or asked the network for."""
        self.ask("0")
        found = []
        for event in self.events:
            kind, params = event.get("method"), event.get("params", {})
            if kind in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                found.append(params)
            if kind == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("data:", "file:")):
                found.append(params["request"]["url"])
            if kind == "Page.javascriptDialogOpening":
                found.append("a dialog")
        return found
