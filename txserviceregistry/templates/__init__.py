"""Files that are made of templates and of what a registry has, and are kept current."""
