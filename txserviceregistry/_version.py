"""The version and the name of the distribution, in the one place that everything else takes them from."""

__version__ = "1.0.0"

#: The name of the package for pip. ``txserviceregistry`` on PyPI is another one: Rackspace's txServiceRegistry of 2013.
DISTRIBUTION = "twisted-service-registry"


def installCommand(extra: str) -> str:
    """How to install an *extra*, for messages: from a clone, and from PyPI once there is a release."""
    return f"pip install '.[{extra}]' in a clone (after the first release: pip install '{DISTRIBUTION}[{extra}]')"
