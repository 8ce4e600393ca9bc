"""
Services as targets of Prometheus: what its ``http_sd_configs`` read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ... import types
from ...util.addresses import Unusable, isEnabled, netloc, readAddress

#: So many targets take about two milliseconds, after which other requests come first.
TARGETS_IN_A_TURN = 200

_PREFIX = "__meta_service_registry_"
# What the name of a label can't have.
_OTHERS = re.compile(r"[^A-Za-z0-9_]")


def targetGroups(services: Iterable[types.Service]) -> Iterator[dict[str, Any]]:
    """
    The target group of each service that is to be scraped. Those without a valid address, those that are out, and those
    with ``status=disabled``, have none.
    """
    for service in services:
        metadata = service["metadata"]
        try:
            host, port = readAddress(metadata)
        except Unusable:
            continue
        state = service.get("state", "up")
        if state == "out" or not isEnabled(metadata):
            continue
        labels = {
            f"{_PREFIX}id": service["id"],
            f"{_PREFIX}tags": f",{','.join(service['tags'])}," if service["tags"] else "",
            f"{_PREFIX}state": state,
        }
        for key in sorted(metadata):
            labels.setdefault(f"{_PREFIX}metadata_{_OTHERS.sub('_', key)}", metadata[key])
        yield {"targets": [netloc(host, port)], "labels": labels}
