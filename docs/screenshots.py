"""
Makes the pictures of the web console: ``python docs/screenshots.py``. They show a registry with services and values
that are made up, in Debian's Chromium.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
# Name, view, width.
PICTURES = (
    ("services", "services", 1280),
    ("service", "services?tag=web&id=web-2", 1280),
    ("events", "events", 1280),
    ("configuration", "configuration//production/web/workers", 1280),
    ("locks", "locks//production/scheduler", 1280),
    ("narrow", "services", 400),
)
TAGS = {"web": 6, "api": 5, "worker": 8, "scheduler": 2, "search": 3}
VALUES = {
    "/production/web/workers": ("2", "4", "6"),
    "/production/web/timeout": ("30",),
    "/production/search/index": ("products-v7",),
    "/staging/web/workers": ("1",),
    "feature_flags": ('{"checkout_v2": true}',),
}


class Registry:
    """A registry in a process of its own."""

    def __init__(self, home: str) -> None:
        twistd = os.path.join(os.path.dirname(sys.executable), "twistd")
        command = [twistd, "-n", "--pidfile=", "--logfile=/dev/null", "service-registry", "--store=memory"]
        command += ["--listen=tcp:0:interface=127.0.0.1", f"--data-dir={home}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.root = self.process.stdout.readline().split()[-1].removesuffix("/v1.0")
        raxrc = dict(line.split(" = ") for line in (Path(home) / "raxrc").read_text().splitlines() if " = " in line)
        self.user, self.key = raxrc["username"], raxrc["api_key"]
        self._headers = {"Content-Type": "application/json"}
        credentials = {"username": self.user, "apiKey": self.key}
        access = self._send("/v2.0/tokens", "POST", {"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}})["access"]
        self._headers["X-Auth-Token"] = access["token"]["id"]
        self._tenant = access["token"]["tenant"]["id"]

    def ask(self, method: str, path: str, body: Any) -> Any:
        return self._send(f"/v1.0/{self._tenant}{path}", method, body)

    def _send(self, path: str, method: str, body: Any) -> Any:
        request = urllib.request.Request(self.root + path, json.dumps(body).encode(), self._headers, method=method)
        with urllib.request.urlopen(request) as response:
            return json.loads(response.read() or b"null")


def fill(registry: Registry) -> dict[str, str]:
    """Services and values to look at; the heartbeat tokens of the services."""
    tokens = {}
    for tag, count in TAGS.items():
        for number in range(1, count + 1):
            zone = "eu-1a" if number % 2 else "eu-1b"
            metadata = {"host": f"10.0.{len(tag)}.{number}", "port": "8000", "zone": zone, "version": "2.17.0"}
            body = {"id": f"{tag}-{number}", "heartbeat_timeout": 30, "tags": [tag, zone[:2]], "metadata": metadata}
            tokens[f"{tag}-{number}"] = registry.ask("POST", "/services", body)["token"]
    registry.ask("POST", "/services", {"id": "worker-9", "heartbeat_timeout": 3, "tags": ["worker", "eu"]})
    registry.ask("PUT", "/services/web-2/state", {"state": "drain", "reason": "kernel upgrade", "expires_in": 1800})
    registry.ask("PUT", "/services/search-3/state", {"state": "out", "reason": "disk is full"})
    for number, name in enumerate(("/production/scheduler", "/production/migrations", "/staging/scheduler"), 1):
        holder = {"holder": f"scheduler-{number}", "metadata": {"host": f"10.0.9.{number}", "pid": f"{1200 + number}"}}
        registry.ask("POST", "/locks", {"name": name, "timeout": 120, **holder})
    for key, values in VALUES.items():
        for value in values:
            registry.ask("PUT", f"/configuration/{key}", {"value": value})
    return tokens


def heartbeats(registry: Registry, tokens: dict[str, str], ended: threading.Event) -> None:
    """Send heartbeats, a few services at a time."""
    services = list(tokens)
    number = 0
    while not ended.wait(0.5):
        due = services[number % 8 :: 8]
        number += 1
        body = {"heartbeats": [{"id": id, "token": tokens[id]} for id in due]}
        for value in registry.ask("POST", "/heartbeats", body)["values"]:
            tokens[value["id"]] = value["token"]


def take(page: Page, theme: str) -> None:
    """All pictures with one theme."""
    for name, view, width in PICTURES:
        page.set_viewport_size({"width": width, "height": 800 if width < 1000 else 720})
        page.evaluate(f"location.hash = '#/{view}'")
        page.mouse.move(0, 0)
        page.wait_for_timeout(1200)
        page.screenshot(path=IMAGES / f"console-{name}-{theme}.png")


def main() -> None:
    """Make all pictures anew."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        registry = Registry(home)
        ended = threading.Event()
        tokens = fill(registry)
        sender = threading.Thread(target=heartbeats, args=(registry, tokens, ended))
        sender.start()
        try:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            for theme in ("light", "dark"):
                page = browser.new_page(color_scheme=theme)  # type: ignore[arg-type]  # one of a Literal
                page.goto(registry.root + "/console/")
                page.fill("#user", registry.user)
                page.fill("#key", registry.key)
                page.click("button[type=submit]")
                page.wait_for_selector(".live:text-is('Live')")
                page.wait_for_timeout(6000)
                take(page, theme)
            browser.close()
        finally:
            ended.set()
            sender.join()
            registry.process.terminate()
            registry.process.wait()


if __name__ == "__main__":
    main()
