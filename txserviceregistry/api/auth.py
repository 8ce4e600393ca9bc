"""Authentication: credentials, the session that the Auth API gives for them, and requests with its token."""

from __future__ import annotations

import copy
import json
import math
import random as randomModule
import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from io import BytesIO
from typing import Any, ClassVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from ..errors import (
    APIError,
    AuthenticationFailed,
    ForeignResponse,
    InvalidSettings,
    ServerError,
    ServiceRegistryError,
    faultIn,
)
from ..http.jsontransport import ClientClosed, JSONTransport
from ..http.messages import BytesProducer, Response, readWhole
from ..util.deferred import Backoff, Waiters, returnsDeferred
from ..util.fields import redacted
from ..util.logs import Logger, Outage
from .shapes import objectsIn, readAccess

# A token is renewed after this part of its lifetime.
_RENEW_AT = 0.9
# Credentials that were refused are not sent again for so many seconds; meanwhile they are looked up once a second.
_REFUSAL = 60.0
_LOOK_UP_INTERVAL = 1.0
# The least seconds between the tries to renew a token that still works.
_SHORTEST_RETRY = 5.0

_CHECK_CREDENTIALS = "Check the username and the API key, and that they belong to this registry"
# The faults of the Auth API by name, with the status code of each. That of a 5xx does not matter.
_FAULTS = {"badRequest": 400, "unauthorized": 401, "forbidden": 403, "userDisabled": 403, "itemNotFound": 404}


@attrs.frozen
class Credentials:
    """A user and the API key, a secret."""

    username: str
    apiKey: str = attrs.field(repr=False)


@attrs.frozen
class Session:
    """The response of the Auth API to credentials."""

    token: str = attrs.field(repr=False)
    tenantId: str
    expires: datetime | None = None
    catalog: Sequence[Any] = attrs.field(default=(), repr=False)

    def registryUrls(self) -> dict[str, str]:
        """The URLs of the service registries in the catalog, without the tenant, by region."""
        urls = {}
        entries = (entry for entry in objectsIn(self.catalog) if entry.get("type") == "rax:service-registry")
        for endpoint in (each for entry in entries for each in objectsIn(entry.get("endpoints"))):
            url, region = endpoint.get("publicURL"), endpoint.get("region")
            if isinstance(url, str) and url.strip("/"):
                name = region if isinstance(region, str) else ""
                urls[name] = url.rstrip("/").removesuffix(f"/{self.tenantId}")
        return urls


def parseTime(text: object) -> datetime | None:
    """A time in ISO 8601, in UTC if it has no offset; ``None`` if Python does not read it."""
    try:
        # Python 3.10 reads neither the Z nor every number of digits.
        time = datetime.fromisoformat(re.sub("[.,][0-9]+", "", str(text).strip().upper().replace("Z", "+00:00")))
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)


def refusesToken(headers: Headers, value: object) -> bool:
    """Whether a 401 with these headers, and this JSON if it is JSON, refuses the auth token, and is not a proxy's."""
    schemes = headers.getRawHeaders(b"WWW-Authenticate") or ()
    return any(scheme.lower().startswith(b"keystone ") for scheme in schemes) or faultIn(value, 401) is not None


def _faultIn(status: int, value: object) -> str | None:
    """The message of a fault of the Auth API, whose type is its only member; ``None`` if it is something else."""
    for name, fault in value.items() if isinstance(value, dict) else ():
        if _FAULTS.get(name) == status and isinstance(fault, dict) and fault.get("code") == status:
            return fault["message"] if isinstance(fault.get("message"), str) else None
    return None


def isAuthFault(status: int, headers: Headers, value: object) -> bool:
    """Whether an error is a fault of the Auth API, and not a gateway's."""
    return _faultIn(status, value) is not None


@attrs.define(eq=False, repr=False, slots=False)
class KeystoneAuthenticator:
    """
    Gets tokens from the Auth API, and renews them near the end of their lifetimes. *lookUp* is called before each
    authentication, because a registry delays its responses to wrong keys.
    """

    _log: ClassVar[Logger] = Logger()

    _transport: JSONTransport
    _credentials: Credentials
    _clock: IReactorTime = attrs.field(kw_only=True)
    _lookUp: Callable[[], Credentials] | None = attrs.field(default=None, kw_only=True)
    _wallClock: Callable[[], float] = attrs.field(default=time.time, kw_only=True)
    _random: Callable[[], float] = attrs.field(default=randomModule.random, kw_only=True)
    _session: Session | None = attrs.field(default=None, init=False)
    _ends: float = attrs.field(default=math.inf, init=False)
    _renewFrom: float = attrs.field(default=math.inf, init=False)
    # Why requests without a token fail, until then.
    _problem: BaseException | None = attrs.field(default=None, init=False)
    _problemUntil: float = attrs.field(default=0.0, init=False)
    # Runs on when no request waits for it any more, but is not here any more.
    _working: Deferred[Session] | None = attrs.field(default=None, init=False)
    _suspectFrom: float = attrs.field(default=0.0, init=False)
    _lookUpFrom: float = attrs.field(default=0.0, init=False)
    _whyNoOthers: str = attrs.field(default="", init=False)

    def __attrs_post_init__(self) -> None:
        self._waiting: Waiters[Session] = Waiters(self._abandoned)
        # The delays while a token still works, and without one.
        self._backoff, self._delays = Backoff(_SHORTEST_RETRY, 300.0, self._random), Backoff(0.02, 1.0, self._random)
        begins = "Auth token could not be renewed: {error} (the old one stays in use)"
        self._outage = Outage(self._log, self._clock, begins, "Auth token renewed, after {seconds:.1f} s")

    def session(self) -> Deferred[Session]:
        """The current session, or a new one, the same for all that wait for it."""
        session, now = self._session, self._clock.seconds()
        if session is not None and now < self._renewFrom:
            return succeed(session)
        if now < self._problemUntil and not (isinstance(self._problem, AuthenticationFailed) and self._foundOthers()):
            return fail(copy.copy(self._problem)) if session is None else succeed(session)
        if session is not None and now < self._ends:
            self._authenticate()
            return succeed(session)
        waiter = self._waiting.wait()
        self._authenticate()
        return waiter

    def stage(self, url: str) -> str:
        return self._transport.stage

    def invalidate(self, token: str) -> None:
        """The registry refused this *token*, which may not be the current one."""
        if self._session is not None and self._session.token == token:
            self._session = None

    def suspect(self, token: str) -> None:
        """A proxy may have refused this *token*: the next request asks for a new one, once in a while."""
        now = self._clock.seconds()
        if self._session is not None and self._session.token == token and now >= self._suspectFrom:
            self._suspectFrom = now + _REFUSAL
            self._renewFrom = now

    def _abandoned(self) -> None:
        if self._session is None and self._working is not None:
            # The next request begins another authentication, at another server. The first token counts.
            self._working = None
            self._transport.servers.failed(self._transport.servers.current)

    def _authenticate(self) -> None:
        if self._working is None:
            self._takeUpOthers()
            self._working = working = self._ask()
            # Only now, because there may be a response at once.
            working.addCallbacks(self._succeeded, self._failed, errbackArgs=(working,))

    @returnsDeferred
    async def _ask(self) -> Session:
        credentials = {"username": self._credentials.username, "apiKey": self._credentials.apiKey}
        response = await self._transport.request(
            "POST", "/tokens", body={"auth": {"RAX-KSKEY:apiKeyCredentials": credentials}}, repeatable=True
        )
        if response.status >= 300:
            raise self._refused(response)
        token, tenant, expires, catalog = response.read(readAccess)
        return Session(token, tenant, parseTime(expires), catalog)

    def _refused(self, response: Response) -> ServiceRegistryError:
        said = _faultIn(response.status, response.json)
        if said is None and response.status < 500:
            # It does not refuse the credentials.
            setting = "RAXSR_AUTH_URL ([auth_api] url) or, if there is none, RAXSR_API_URL ([api] url)"
            doubt = response.redirection(setting) or response.doubt
            return ForeignResponse(response.status, method=response.method, url=response.url, doubt=doubt)
        message = redacted(said or "", [self._credentials.apiKey])
        if response.status in (401, 403):
            asked, user = f"{response.method} {response.url}", self._credentials.username
            why = f": {message}" if message else ""
            return AuthenticationFailed(f"{asked} refused the credentials of user {user!r} with {response.status}{why}")
        # No subclass for a 4xx: a wrong URL of the Auth API is not a service that was not found.
        kind = ServerError if response.status >= 500 else APIError
        return kind(response.status, message=message, method=response.method, url=response.url, doubt=response.doubt)

    def _succeeded(self, session: Session) -> None:
        self._working = None
        self._outage.succeeded()
        self._session = session
        self._problemUntil = 0.0
        self._backoff.reset()
        self._delays.reset()
        self._ends = self._renewFrom = math.inf
        life = 0.0 if session.expires is None else session.expires.timestamp() - self._wallClock()
        # If it has expired already, the clocks differ, and it works until it is refused.
        if life > 0:
            now = self._clock.seconds()
            self._ends = now + life
            self._renewFrom = now + life * (_RENEW_AT - 0.05 * self._random())
        self._waiting.fire(session)

    def _failed(self, failure: Failure, working: Deferred[Session]) -> None:
        error = failure.value
        isAnother = self._working is not None or self._session is not None
        if working is not self._working and (isAnother or not isinstance(error, AuthenticationFailed)):
            return
        self._working = None
        now = self._clock.seconds()
        isClosed = isinstance(error, (CancelledError, ClientClosed))
        if isinstance(error, AuthenticationFailed):
            if self._foundOthers():
                self._authenticate()
                return
            error = AuthenticationFailed(f"{error}. {self._whyNoOthers or _CHECK_CREDENTIALS}")
            self._problem, self._problemUntil = error, now + _REFUSAL
        elif self._session is None and not isClosed:
            self._problem, self._problemUntil = error, now + self._delays.next()
        if self._session is not None:
            # Not at once, as the first delay of a backoff: the old token still works.
            self._renewFrom = now + max(self._backoff.next(), _SHORTEST_RETRY)
            if not isClosed:
                self._outage.failed(error=str(error))
            self._waiting.fire(self._session)
            return
        for waiter in tuple(self._waiting):
            # One exception for each, because each raise extends its traceback.
            self._waiting.fire(Failure(copy.copy(error)), [waiter])

    def _foundOthers(self) -> bool:
        now = self._clock.seconds()
        if now < self._lookUpFrom:
            return False
        self._lookUpFrom = now + _LOOK_UP_INTERVAL
        return self._takeUpOthers()

    def _takeUpOthers(self) -> bool:
        """Use the current credentials; whether they have changed."""
        self._whyNoOthers = ""
        try:
            found = self._credentials if self._lookUp is None else self._lookUp()
        except InvalidSettings as error:
            self._whyNoOthers = str(error)
            return False
        except Exception:
            # Requests wait for a token.
            self._log.failure("Credentials could not be looked up")
            return False
        if found == self._credentials:
            return False
        self._log.info("API key of user {username} changed; the new one is used", username=found.username)
        self._credentials = found
        self._problemUntil = 0.0
        return True


@implementer(IAgent)
@attrs.frozen(eq=False, repr=False)
class RetryingAuthAgent:
    """An agent that adds the auth token, and sends a request again with a new one if the registry refuses it."""

    _agent: IAgent
    _authenticator: KeystoneAuthenticator

    @returnsDeferred
    async def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> IResponse:
        body = bodyProducer
        if body is not None and not isinstance(body, BytesProducer):
            # Bodies of treq are files, which are closed after the first request.
            collected: Any = BytesIO()
            await body.startProducing(collected)
            body = BytesProducer(collected.getvalue())
        response: IResponse
        for isRetry in (False, True):
            session = await self._authenticator.session()
            authenticated = Headers() if headers is None else headers.copy()
            authenticated.setRawHeaders(b"X-Auth-Token", [session.token.encode("utf-8")])
            response = await self._agent.request(method, uri, authenticated, body)
            if response.code != 401 or isRetry:
                break
            response = whole = await readWhole(response)
            try:
                value = json.loads(whole.body)
            except (ValueError, RecursionError):
                value = None
            if not refusesToken(whole.headers, value):
                self._authenticator.suspect(session.token)
                break
            self._authenticator.invalidate(session.token)
        return response
