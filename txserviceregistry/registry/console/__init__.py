"""The web console: shows and changes the content of the registry in a browser."""
