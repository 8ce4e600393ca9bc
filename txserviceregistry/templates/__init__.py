"""Files that are rendered from templates with the registry's content, and kept up to date."""
