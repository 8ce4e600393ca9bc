"""
Web console in a browser: ``python -m benchmarks.console``. It needs the extra ``browser`` and Chromium.

The page shows 5,000 services while 100 a second are registered. Some of these are the first of the list, so that they
are to be seen. The figures are the time from the response to their registration until their row is in the page, the
tasks that keep the page from responding, and the CPU time of the registry.
"""

from __future__ import annotations

import shutil
import statistics
import time
from contextlib import closing

from playwright.sync_api import sync_playwright

from .harness import Api, Figure, registry, run, settingsOf

SERVICES = 5000
# Changes per second, and every which of them is looked for.
RATE = 100
PROBES = 10

# Notes when a row is added, and tasks of 50 ms and longer.
_WATCH = """() => {
  window.seen = {};
  window.longest = 0;
  new MutationObserver((records) => {
    for (const record of records) {
      for (const node of record.addedNodes) {
        const id = /aaa-[0-9]+/.exec(node.textContent);
        if (id && !(id[0] in window.seen)) window.seen[id[0]] = Date.now();
      }
    }
  }).observe(document.querySelector(".rows"), { childList: true });
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.longest = Math.max(window.longest, entry.duration);
  }).observe({ type: "longtask" });
}"""


def measure(quick: bool) -> list[Figure]:
    """See the module."""
    count, seconds = (500, 3) if quick else (SERVICES, 15)
    settings = None
    with registry() as measured, closing(Api(measured.home)) as api, sync_playwright() as playwright:
        settings = settingsOf(measured.home)
        for number in range(count):
            metadata = {"host": f"10.0.{number // 250}.{number % 250}", "port": "8000", "zone": f"zone-{number % 3}"}
            api.create(f"service-{number:05}", tags=[f"tag-{number % 40}"], metadata=metadata)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{api.root}/console/")
        page.fill("#user", settings.username)
        page.fill("#key", settings.apiKey)
        began = time.monotonic()
        page.click("button[type=submit]")
        page.wait_for_selector(".rows .row")
        loaded = time.monotonic() - began
        page.wait_for_timeout(1000)
        page.evaluate(_WATCH)
        registered = {}
        measured.costs.since()
        began = time.monotonic()
        for number in range(RATE * seconds):
            isProbe = number % PROBES == 0
            id = f"aaa-{99_999 - number}" if isProbe else f"other-{number:05}"
            api.create(id, tags=[f"tag-{number % 40}"])
            if isProbe:
                registered[id] = 1000 * time.time()
            # Events of the page are handled while it waits.
            page.wait_for_timeout(max(0.0, 1000 * (began + (number + 1) / RATE - time.monotonic())))
        rate = RATE * seconds / (time.monotonic() - began)
        cpu = measured.costs.since()
        page.wait_for_timeout(1000)
        seen, longest = page.evaluate("[window.seen, window.longest]")
        browser.close()
    assert seen.keys() == registered.keys(), registered.keys() - seen.keys()
    delays = sorted(seen[id] - at for id, at in registered.items())
    return [
        Figure(f"login until {count:,} services are shown", 1000 * loaded, "ms"),
        Figure("changes meanwhile", rate, "/s"),
        Figure("change until it is shown, median", statistics.median(delays), "ms"),
        Figure("change until it is shown, longest", delays[-1], "ms", atMost=300),
        Figure("longest task of 50 ms or more", longest, "ms", atMost=100),
        Figure("CPU per change", 1e6 * cpu / (RATE * seconds), "µs"),
    ]


if __name__ == "__main__":
    run(__doc__, measure)
