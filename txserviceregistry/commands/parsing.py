"""Where the commands have :mod:`txserviceregistry.util.parsing` from, until they import it from its own place."""

from ..util.parsing import formatMetadata, formatTags, parseMetadata, parseTags

__all__ = ["formatMetadata", "formatTags", "parseMetadata", "parseTags"]
