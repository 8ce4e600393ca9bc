"""``raxsr``. Its modules import Twisted and the client only when a request is sent, so that help is fast."""
