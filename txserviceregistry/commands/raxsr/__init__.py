"""
``raxsr``: queries and changes a registry on the command line.

Modules import Twisted, treq and the client only when a command sends a request, so that help and completion are fast.
"""
