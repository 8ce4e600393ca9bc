"""
``raxsr``: the registry from a command line.

Nothing here imports Twisted, treq or the client before a command really asks the registry: help and completion have to
be there at once.
"""
