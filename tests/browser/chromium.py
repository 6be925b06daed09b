"""Drives headless Chromium over its DevTools pipe: no driver, no port, no package."""

import base64
import json
import os
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BYTES_OF_PIXEL = {2: 3, 6: 4}  # PNG color types: RGB, RGBA


def find_chromium():
    """The program, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Chromium:
    """One browser with one page."""

    def __init__(self, program, profile):
        to_browser, self._commands = os.pipe()
        self._answers, from_browser = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
                 f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        # the browser reads its commands from descriptor 3 and writes to 4
        shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, program, *flags],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._number = 0
        self._session = None
        self.events = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        """End the browser."""
        try:
            self._session = None
            self.call("Browser.close")
        except (EOFError, OSError):
            pass
        os.close(self._commands)
        os.close(self._answers)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method, **params):
        """Send a command and give its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def open(self, path, fragment="", width=1400, height=900, scheme="light", script=True):
        """Open a file and wait until it is loaded."""
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        # two addresses that differ in their fragment alone are one page, which would not be loaded again
        self._go("about:blank")
        self._go(Path(path).resolve().as_uri() + fragment)

    def evaluate(self, expression):
        """Give the value of a JavaScript expression, also on a page whose own scripts are off."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key, text=""):
        """Press and release a key."""
        codes = {"Enter": 13, "Tab": 9}
        more = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    def type(self, text):
        """Type a text into what has the focus."""
        self.call("Input.insertText", text=text)

    def click(self, selector):
        """Click into the middle of an element."""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def screenshot(self, path=None, scale=1.0, whole=False):
        """Photograph the window, or the whole page; give the pixels `[height, width, 3]` uint8."""
        metrics = self.call("Page.getLayoutMetrics")
        box = metrics["cssContentSize"] if whole else metrics["cssVisualViewport"]
        width, height = (box[name] if whole else box[f"client{name.title()}"] for name in ("width", "height"))
        x, y = (0, 0) if whole else (box["pageX"], box["pageY"])
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": scale}
        answer = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=whole)
        data = base64.b64decode(answer["data"])
        if path is not None:
            Path(path).write_bytes(data)
            return None
        return decode_png(data)

    def problems(self):
        """What the browser has complained about, and every address it asked for."""
        logged = [e["params"]["entry"]["text"] for e in self.events if e.get("method") == "Log.entryAdded"]
        thrown = [str(e["params"]) for e in self.events if e.get("method") == "Runtime.exceptionThrown"]
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return logged + thrown, asked

    def _go(self, address):
        self.events.clear()
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def _receive(self):
        while b"\0" not in self._buffer:
            data = os.read(self._answers, 1 << 20)
            if not data:
                raise EOFError("Chromium has ended")
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)


def decode_png(data):
    """Pixels of an 8-bit RGB or RGBA image without interlacing, as Chromium writes them: `[height, width, 3]` uint8."""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    size = BYTES_OF_PIXEL[data[25]]
    packed, at = b"", 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += length + 12
    raw = zlib.decompress(packed)
    stride = width * size
    above = [0] * stride
    rows = []
    for y in range(height):
        kind, line = raw[y * (stride + 1)], list(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        for i in range(stride):
            left = line[i - size] if i >= size else 0
            corner = above[i - size] if i >= size else 0
            line[i] = (line[i] + _guess(kind, left, above[i], corner)) & 255
        rows.append(line)
        above = line
    return np.array(rows, np.uint8).reshape(height, width, size)[:, :, :3]


def _guess(kind, left, above, corner):
    """The five filters of PNG."""
    if kind < 3:
        return (0, left, above)[kind]
    if kind == 3:
        return (left + above) // 2
    distances = [(abs(above - corner), 0, left), (abs(left - corner), 1, above)]
    distances.append((abs(left + above - 2 * corner), 2, corner))
    return min(distances)[2]
