"""The last good page of each listing, for the time when the registry can't be reached."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

from twisted.internet.interfaces import IReactorTime


class ListCache:
    """
    The last pages, kept as JSON text, so that no caller changes the page of another. The oldest ones are dropped first.

    :param maxPages: the maximum number of pages.
    :param maxBytes: the maximum number of bytes of JSON.
    """

    def __init__(self, maxPages: int = 256, maxBytes: int = 8 * 1024 * 1024) -> None:
        self._maxPages = maxPages
        self._maxBytes = maxBytes
        self._size = 0
        self._pages: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def keep(self, key: str, page: bytes, clock: IReactorTime) -> None:
        """
        Keep a page of a listing instead of the last one.

        :param key: the listing's path and query.
        :param page: the page's JSON.
        :param clock: measures its age.
        """
        self._drop(key)
        self._pages[key] = page, clock.seconds()
        self._size += len(page)
        while self._pages and (len(self._pages) > self._maxPages or self._size > self._maxBytes):
            self._drop(next(iter(self._pages)))

    def stale(self, key: str, clock: IReactorTime) -> Any:
        """The page, with its age in seconds as ``stale`` in its ``metadata``; ``None`` if there is none."""
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
