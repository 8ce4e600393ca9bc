"""
The registry: the server side of the API.

``twistd service-registry`` runs it as a program; a :class:`RegistryService` runs it within one of your own. The names
are imported when they are first used.
"""

from typing import TYPE_CHECKING

from ..util import lazyNames

__all__ = ["ConnectionLimits", "RegistryService", "ResourceLimits", "StartFailed"]

if TYPE_CHECKING:
    from .http.connections import ConnectionLimits
    from .limits import ResourceLimits
    from .service import RegistryService, StartFailed
else:
    __getattr__, __dir__ = lazyNames(
        __name__,
        ConnectionLimits="http.connections",
        RegistryService="service",
        ResourceLimits="limits",
        StartFailed="service",
    )
