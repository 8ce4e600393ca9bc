"""
Where the metrics come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
from cryptography import x509

from .model import Figures
from .statistics import RequestStatistics, StoreStatistics


@attrs.frozen
class Sources:
    """
    Where the metrics come from; functions are called each time.

    :ivar store: the store's name.
    :ivar figures: of the registry's rules.
    :ivar tokensIssued: how many new auth tokens there were.
    :ivar authenticationsFailed: how many authentications were refused.
    :ivar connections: how many are open.
    :ivar evictions: how many were closed to make room.
    :ivar waited: how often work for clients without a valid token had to wait, by kind: ``request``, ``handshake``,
        ``login``.
    :ivar loginsRefused: how many API keys were not checked because too many waited.
    :ivar accessLogLost: how many lines the access log has lost.
    :ivar certificates: those that the listeners show, by their files.
    """

    store: str
    requests: RequestStatistics
    storeStatistics: StoreStatistics
    figures: Callable[[], Figures]
    tokensIssued: Callable[[], int]
    authenticationsFailed: Callable[[], int]
    connections: Callable[[], int]
    evictions: Callable[[], int]
    waited: Callable[[], Mapping[str, int]]
    loginsRefused: Callable[[], int]
    accessLogLost: Callable[[], int]
    certificates: Callable[[], Mapping[str, x509.Certificate]]
