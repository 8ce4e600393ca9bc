"""
Who sends a request: the token that it shows, and the credentials that a token is issued for.
"""

from __future__ import annotations

import json
import re

from twisted.web.server import Request

from ..fairness import Origin
from ..faults import Fault, unauthorized
from ..identity.identity import Identity, InvalidCredentials, InvalidToken
from ..stores.interfaces import UserRecord
from .admission import Client
from .keystone import access, credentials
from .messages import API, AUTH, Response, baseUrl, parseBody

# The token of a request, wherever it stands in what has arrived.
_TOKEN = re.compile(rb"\r\nX-Auth-Token:[ \t]*([^\s]{1,200})[ \t]*\r\n", re.IGNORECASE)
# The beginning of a request with credentials.
_LOGIN = b"POST " + AUTH.encode()


class Authenticator:
    """
    Authenticates requests.

    :param identity: knows users and tokens.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def userOf(self, request: Request) -> UserRecord:
        """
        The user who sends a request.

        :raises Fault: 401 if it has none, or an invalid one.
        """
        token = (request.requestHeaders.getRawHeaders(b"X-Auth-Token") or [b""])[0].decode("latin-1")
        if not token:
            raise unauthorized("No authentication token provided", baseUrl(request) + AUTH)
        user = self._identity.knownUser(token)
        if user is None:
            try:
                user = await self._identity.userOf(token)
            except InvalidToken:
                raise invalidToken(request)
        client = request.channel
        if isinstance(client, Client) and not client.isKnown:
            client.recognize()
        return user

    async def issueToken(self, request: Request) -> Response:
        """
        Answer a ``POST /tokens``, also where it fails.

        :raises Overloaded: if too many API keys are waiting to be checked.
        """
        try:
            username, key = credentials(parseBody(request))
        except Fault as fault:
            return _refusal("badRequest", fault.code, fault.message)
        try:
            origin = request.channel.origin if isinstance(request.channel, Client) else Origin()
            token = await self._identity.authenticate(username, key, origin)
        except InvalidCredentials:
            return _refusal("unauthorized", 401, "Username or api key is invalid")
        if isinstance(request.channel, Client):
            request.channel.recognize()
        return Response(200, access(token, f"{baseUrl(request)}{API}/{token.tenant}"))

    def vouchesFor(self, data: bytes) -> bool:
        """
        Whether the beginning of a request, as it arrived, shows a token or credentials that were valid when the store
        was last asked for them.
        """
        found = _TOKEN.search(data)
        if found is not None:
            return self._identity.isFamiliar(found[1].decode("latin-1"))
        if not data.startswith(_LOGIN):
            return False
        try:
            username, key = credentials(json.loads(data.partition(b"\r\n\r\n")[2]))
        except (Fault, ValueError, RecursionError, AttributeError):
            return False
        return self._identity.remembers(username, key)


def invalidToken(request: Request) -> Fault:
    """401: the token of a request is invalid, or another tenant's."""
    return unauthorized("Invalid or expired authentication token", baseUrl(request) + AUTH)


def _refusal(kind: str, code: int, message: str) -> Response:
    return Response(code, {kind: {"code": code, "message": message}})
