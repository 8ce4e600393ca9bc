"""Where the commands have :mod:`txserviceregistry.parsing` from, until they import it from its own place."""

from ..parsing import formatMetadata, formatTags, parseMetadata, parseTags

__all__ = ["formatMetadata", "formatTags", "parseMetadata", "parseTags"]
