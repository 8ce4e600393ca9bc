"""The version and the name of the distribution, in the one place that everything else takes them from."""

__version__ = "1.0.0.dev0"

#: What pip calls the package. ``txserviceregistry`` on PyPI is another one: Rackspace's txServiceRegistry of 2013.
DISTRIBUTION = "twisted-service-registry"


def installCommand(extra: str) -> str:
    """
    How to install an *extra*, for messages.

    :return: a shell command; in a clone, ``pip install '.[EXTRA]'`` does the same.
    """
    return f"pip install '{DISTRIBUTION}[{extra}]' (in a clone: pip install '.[{extra}]')"
