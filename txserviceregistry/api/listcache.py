"""The last good page of each listing, for the time when the registry can't be reached."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

from twisted.internet.interfaces import IReactorTime


class ListCache:
    """
    Pages as they came, the least recently kept going first when there are too many.

    A page is kept as its JSON text: nothing that a caller does to one changes what the next one gets.

    :param maxPages: how many pages,
    :param maxBytes: and how many bytes of JSON, at most.
    """

    def __init__(self, maxPages: int = 256, maxBytes: int = 8 * 1024 * 1024) -> None:
        self._maxPages = maxPages
        self._maxBytes = maxBytes
        self._size = 0
        self._pages: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def keep(self, key: str, page: bytes, clock: IReactorTime) -> None:
        """
        Keep a page instead of the one that there is.

        :param key: names the listing: its path and query.
        :param page: the page's JSON.
        :param clock: what its age is counted by.
        """
        self._drop(key)
        self._pages[key] = page, clock.seconds()
        self._size += len(page)
        while self._pages and (len(self._pages) > self._maxPages or self._size > self._maxBytes):
            self._drop(next(iter(self._pages)))

    def stale(self, key: str, clock: IReactorTime) -> Any:
        """
        The page that was kept, its ``metadata`` bearing ``stale``: its age in seconds.

        :return: ``None`` if there is none.
        """
        kept = self._pages.get(key)
        if kept is None:
            return None
        text, since = kept
        page = json.loads(text)
        page["metadata"]["stale"] = max(0.0, clock.seconds() - since)
        return page

    def _drop(self, key: str) -> None:
        kept = self._pages.pop(key, None)
        if kept is not None:
            self._size -= len(kept[0])
