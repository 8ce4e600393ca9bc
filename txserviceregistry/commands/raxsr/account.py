"""``raxsr account``: the limits of the account."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .base import ListCommand
from .output import Column

if TYPE_CHECKING:
    from ...client import Client


class RateLimits(ListCommand):
    """Show how many requests the account may make, and has made."""

    example = "raxsr account rate-limits"
    columns = {"rate": Column("Rate"), "window": Column("Window"), "used": Column("Used"), "limit": Column("Limit")}

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        limits = await client.account.getLimits()
        return [{"rate": path, **rate} for path, rate in limits["rate"].items()]


class ResourceLimits(ListCommand):
    """Show how many objects of each kind the account may have."""

    example = "raxsr account resource-limits -f json"
    columns = {"resource": Column("Resource"), "limit": Column("Limit")}

    async def perform(self, client: Client, parsed: argparse.Namespace) -> Any:
        limits = await client.account.getLimits()
        return [{"resource": kind, "limit": limit} for kind, limit in limits["resource"].items()]
