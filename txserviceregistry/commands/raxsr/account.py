"""
``raxsr account``: what the account may do.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .base import ListCommand, Progress

if TYPE_CHECKING:
    from ...client import Client
    from ...types import Limits


async def _limits(client: Client, progress: Progress) -> Limits:
    return await client.account.getLimits()


class RateLimits(ListCommand):
    """Show how many requests the account may make, and has made."""

    example = "raxsr account rate-limits"
    columns = {"rate": "Rate", "window": "Window", "used": "Used", "limit": "Limit"}

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Any, Any]:
        """Do it."""
        rates = self.ask(_limits)["rate"]
        return list(self.columns), [(path, rate["window"], rate["used"], rate["limit"]) for path, rate in rates.items()]


class ResourceLimits(ListCommand):
    """Show how many objects of each kind the account may have."""

    example = "raxsr account resource-limits -f json"
    columns = {"resource": "Resource", "limit": "Limit"}

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Any, Any]:
        """Do it."""
        return list(self.columns), list(self.ask(_limits)["resource"].items())
