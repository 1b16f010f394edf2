"""Debian's chromium, headless, driven over chromedriver's own HTTP protocol on loopback."""

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
MISSING = "no chromium or no chromedriver on this machine (Debian: apt-get install chromium chromium-driver)"


class Browser:
    """One window. Use as a context manager: the browser and its driver end with it."""

    def __init__(self, profile: Path, dark: bool = False) -> None:
        assert DRIVER and BROWSER, MISSING
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.driver = subprocess.Popen(
            [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.base = f"http://127.0.0.1:{port}"
        self._wait()
        options: dict[str, Any] = {
            "binary": BROWSER,
            "args": [*FLAGS, f"--user-data-dir={profile}"],
        }
        if dark:
            options["args"].append("--blink-settings=preferredColorScheme=0")
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "timeouts": {"implicit": 10_000},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{session['sessionId']}"

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait(10)

    def _wait(self) -> None:
        for _ in range(200):
            try:
                if self.call("GET", "/status")["ready"]:
                    return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)
        raise TimeoutError("chromedriver did not start")

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = json.dumps(body if body is not None else {}).encode() if method == "POST" else None
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=60
        ) as reply:
            return json.load(reply)["value"]

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("POST", f"{self.session}/url", {"url": "about:blank"})
        self.call("POST", f"{self.session}/url", {"url": path.resolve().as_uri()})

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call(
            "POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": parameters}
        )

    def run(self, script: str, *arguments: Any) -> Any:
        return self.call(
            "POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)}
        )

    def find(self, css: str) -> str:
        """The first element that matches, as soon as there is one."""
        return next(
            iter(
                self.call(
                    "POST", f"{self.session}/element", {"using": "css selector", "value": css}
                ).values()
            )
        )

    def click(self, css: str) -> None:
        self.call("POST", f"{self.session}/element/{self.find(css)}/click")

    def type(self, css: str, keys: str) -> None:
        self.call("POST", f"{self.session}/element/{self.find(css)}/value", {"text": keys})

    def text(self, css: str) -> str:
        return self.call("GET", f"{self.session}/element/{self.find(css)}/text")

    def texts(self, css: str) -> list[str]:
        return self.run(
            "return [...document.querySelectorAll(arguments[0])].map(n => n.textContent)", css
        )

    def count(self, css: str) -> int:
        return self.run("return document.querySelectorAll(arguments[0]).length", css)

    def log(self, kind: str) -> list[dict[str, Any]]:
        return self.call("POST", f"{self.session}/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """The addresses that pages asked for since the last call, data: and the page itself
        included.

        What the browser's own first window loads from chrome:// is left out.
        """
        events = [json.loads(e["message"])["message"] for e in self.log("performance")]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [
            e["request"]["url"]
            for e in sent
            if not e.get("documentURL", "").startswith("chrome://")
        ]

    def screenshot(self, path: Path, whole: bool = False) -> Path:
        """A PNG of the window, or of the whole page."""
        taken = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))
        return path
