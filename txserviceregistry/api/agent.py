"""
An agent that puts the auth token on requests::

    HTTPClient(RetryingAuthAgent(Agent(reactor), authenticator))

is treq with a token on each request, and does not need the rest of the client.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from ..http.bodies import BytesProducer, Collector, readWhole
from ..util.deferred import returnsDeferred
from .authenticator import KeystoneAuthenticator, Session, refusesToken


@implementer(IAgent)
class RetryingAuthAgent:
    """
    Adds ``X-Auth-Token`` to each request. On a 401 of the registry it discards that token, gets a new one, and sends
    the request once more. A 401 of a proxy is the response, and the token stays in use.

    :param agent: sends the requests.
    :param authenticator: has the tokens.
    """

    def __init__(self, agent: IAgent, authenticator: KeystoneAuthenticator) -> None:
        self._agent = agent
        self._authenticator = authenticator

    @returnsDeferred
    async def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> IResponse:
        """
        Do a request, authenticated.

        :return: fires with the response, which is a 401 only if a fresh token was refused too, or if it is not the
            registry's. Fails as the authenticator does, or the agent.
        """
        body = bodyProducer
        if body is not None and not isinstance(body, BytesProducer):
            # Bodies of treq are files, which are closed after the first request.
            collector = Collector()
            await body.startProducing(collector)
            body = BytesProducer(collector.body)
        session = await self._authenticator.session()
        response = await self._agent.request(method, uri, _withToken(headers, session), body)
        if response.code != 401:
            return response
        whole = await readWhole(response)
        if not refusesToken(whole.headers, _jsonIn(whole.body)):
            self._authenticator.suspect(session.token)
            return whole
        self._authenticator.invalidate(session.token)
        session = await self._authenticator.session()
        return await self._agent.request(method, uri, _withToken(headers, session), body)


def _jsonIn(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _withToken(headers: Headers | None, session: Session) -> Headers:
    authenticated = Headers() if headers is None else headers.copy()
    authenticated.setRawHeaders(b"X-Auth-Token", [session.token.encode("utf-8")])
    return authenticated
