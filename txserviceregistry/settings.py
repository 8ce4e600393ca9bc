"""
Settings from arguments, the environment, INI files and the registry of this machine: each is looked up by itself, in
that order. A file is read only when a value is needed that may be in it.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from .errors import InvalidSettings
from .util.fields import HOST

__all__ = ["DEFAULT_URL", "Settings", "defaultDataDir", "namesRegistry", "parseUrls", "readSettings"]

#: The default URL of a registry on this machine.
DEFAULT_URL = "http://127.0.0.1:8880/v1.0"

DEFAULT_REGION = "us"

# Each setting's environment variable, and its section and option in an INI file.
_NAMES: dict[str, tuple[str, tuple[str, str] | None]] = {
    "username": ("RAXSR_USERNAME", ("credentials", "username")),
    "apiKey": ("RAXSR_API_KEY", ("credentials", "api_key")),
    "baseUrl": ("RAXSR_API_URL", ("api", "url")),
    "authUrl": ("RAXSR_AUTH_URL", ("auth_api", "url")),
    "region": ("RAXSR_REGION", None),
    "verify": ("RAXSR_SSL_VERIFY", ("ssl", "verify")),
    "caFile": ("RAXSR_CA_FILE", ("ssl", "ca_file")),
}
_PLACES = [place for _, place in _NAMES.values() if place is not None]

_DEFAULT_PORTS = {"http": 80, "https": 443}


@attrs.frozen
class Settings:
    """
    The URLs, credentials and TLS files of a client.

    :ivar username: the user's name.
    :ivar apiKey: the user's key, a secret.
    :ivar baseUrls: the registry's URLs, without the tenant; empty if the Auth API's catalog has them.
    :ivar authUrls: the Auth API's URLs.
    :ivar region: selects a registry of a catalog with several.
    :ivar verify: whether TLS certificates are verified.
    :ivar caFile: a file with the certificates to trust, instead of those that the platform trusts.
    :ivar sources: the source of each value, for messages, by the name of the argument of :func:`readSettings`.
    :ivar raxrcPath: the absolute path of the INI file that contains the key, if one does.
    :ivar readAgain: reads the settings again; ``None`` if they were not read, or came through a pipe.
    """

    username: str
    apiKey: str = attrs.field(repr=False)
    baseUrls: tuple[str, ...]
    authUrls: tuple[str, ...]
    region: str = DEFAULT_REGION
    verify: bool = True
    caFile: str | None = None
    sources: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    raxrcPath: Path | None = None
    readAgain: Callable[[], Settings] | None = attrs.field(default=None, eq=False, repr=False)


def defaultDataDir(environ: Mapping[str, str] | None = None, home: Path | None = None) -> Path:
    """
    The data directory of the registry of this machine: ``RAXSR_DATA_DIR``, or ``txserviceregistry`` in
    ``$XDG_STATE_HOME`` or ``~/.local/state``; ``InvalidSettings`` if there is no home directory.
    """
    found = _Lookup({}, environ, home).dataDir
    if found is None:
        raise InvalidSettings(
            "No default data directory: this user has no home directory (HOME is not set, and there is no passwd "
            "entry). Give --data-dir, or set RAXSR_DATA_DIR"
        )
    return found


def parseUrls(text: str | Iterable[str], source: str) -> tuple[str, ...]:
    """
    The URLs in a sequence, or in a text, separated by commas; without a slash at the end and without a default port.
    ``InvalidSettings``, with their *source*, if one can't be used. A URL with a password is not shown.
    """
    pieces = text.split(",") if isinstance(text, str) else list(text)
    urls = tuple(dict.fromkeys(_parseUrl(piece.strip(), source) for piece in pieces if piece.strip()))
    if not urls:
        raise InvalidSettings(f"{source}: no URL given")
    return urls


def _parseUrl(url: str, source: str) -> str:
    if "@" in url.partition("?")[0]:
        raise InvalidSettings(f"{source}: a URL must not contain a username or a password. Give them as settings")
    wrong = f"{source}: invalid URL {url!r}. Use the form http://HOST:PORT/PATH or https://HOST:PORT/PATH"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError:
        raise InvalidSettings(wrong)
    isPlain = re.fullmatch(r"[!-~]*", parts.path) and not parts.query and not parts.fragment
    if parts.scheme not in _DEFAULT_PORTS or not HOST.fullmatch(host) or not isPlain:
        raise InvalidSettings(wrong)
    host = f"[{host}]" if ":" in host else host
    netloc = host if port is None or port == _DEFAULT_PORTS[parts.scheme] else f"{host}:{port}"
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"


@attrs.frozen
class _Setting:
    value: str = attrs.field(repr=False)
    source: str
    path: Path | None = None


@attrs.define(slots=False)
class _IniFile:
    """An INI file, which is read when a value is first needed."""

    path: Path
    _mustExist: bool

    def get(self, name: str) -> _Setting | None:
        place = _NAMES[name][1]
        value = "" if place is None else (self._parser.get(*place, fallback="") or "").strip()
        if place is None or not value:
            return None
        return _Setting(value, f"{self.path} ([{place[0]}] {place[1]})", self.path)

    @cached_property
    def _parser(self) -> configparser.ConfigParser:
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        try:
            parser.read_string(self.path.read_text("utf-8-sig"))
        except (FileNotFoundError, NotADirectoryError):
            if self._mustExist:
                raise InvalidSettings(f"RAXSR_RAXRC: file {self.path} does not exist")
        except OSError as error:
            raise InvalidSettings(f"{self.path} can't be read: {error.strerror}")
        except UnicodeDecodeError:
            raise InvalidSettings(f"{self.path} can't be read: invalid UTF-8")
        # The parser's own messages show the line, which may contain the key.
        except configparser.MissingSectionHeaderError as error:
            raise InvalidSettings(f"{self.path}, line {error.lineno}: the first line must be a [section]")
        except configparser.ParsingError as error:
            raise InvalidSettings(f"{self.path}, line {error.errors[0][0]}: expected [section] or option = value")
        except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as error:
            raise InvalidSettings(f"{self.path}, line {error.lineno}: duplicate section or option")
        # Other sections belong to other programs.
        for section in {section for section, _ in _PLACES if parser.has_section(section)}:
            options = [option for owner, option in _PLACES if owner == section]
            if not set(parser.options(section)).issubset(options):
                # The unknown one is not shown, because it may be the key.
                raise InvalidSettings(f"{self.path}: unknown option in [{section}]. Use {' or '.join(options)}")
        return parser


class _Lookup:
    """The places of settings, in their order. *dataDir* is ``None`` without a home directory."""

    def __init__(
        self, explicit: Mapping[str, str | None], environ: Mapping[str, str] | None, home: Path | None, tls: bool = True
    ) -> None:
        self._explicit = explicit
        self._environ = dict(os.environ if environ is None else environ)
        # The working directory may be another one later: twistd in the background changes it.
        for name in ("RAXSR_RAXRC", "RAXSR_DATA_DIR"):
            if self._environ.get(name):
                self._environ[name] = os.path.abspath(os.path.expanduser(self._environ[name]))
        if home is None:
            # Neither HOME nor a passwd entry exists in a container that runs as a bare user id.
            with suppress(RuntimeError):
                home = Path(self._environ["HOME"]) if self._environ.get("HOME") else Path.home()
        self._home = home and home.absolute()
        self._tls = tls
        self._sources: dict[str, str] = {}
        state = self._environ.get("XDG_STATE_HOME", "")
        # The XDG specification: ignore relative paths. Without a home directory, the files in it do not exist.
        base = Path(state) if os.path.isabs(state) else self._home and self._home / ".local" / "state"
        data, named = self._environ.get("RAXSR_DATA_DIR"), self._environ.get("RAXSR_RAXRC")
        self.dataDir = Path(data) if data else base and base / "txserviceregistry"
        path = Path(named) if named else self._home and self._home / ".raxrc"
        self._file = None if path is None else _IniFile(path, mustExist=bool(named))
        self._local = None if self.dataDir is None else _IniFile(self.dataDir / "raxrc", mustExist=False)

    def get(self, name: str, *, local: bool = True) -> _Setting | None:
        """Find a value; *local* says whether the registry of this machine may give it."""
        value = self._explicit.get(name)
        setting = self._fromEnvironment(name) if value is None else _Setting(value, f"the argument {name}")
        for file in (self._file, self._local if local else None):
            if setting is None and file is not None:
                setting = file.get(name)
        if setting is not None:
            self._sources[name] = setting.source
        return setting

    def _fromEnvironment(self, name: str) -> _Setting | None:
        variable = _NAMES[name][0]
        value = self._environ.get(variable, "").strip()
        source = f"the environment variable {variable}"
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            # Python decodes an invalid byte to half of a surrogate pair. It may be in a secret.
            raise InvalidSettings(f"{source} is not text in the encoding of the locale. Write it in UTF-8") from None
        return _Setting(value, source) if value else None

    def read(self) -> Settings:
        base, auth = self._urls()
        user, key, region = self.get("username"), self.get("apiKey"), self.get("region")
        files = [file for file in (self._file, self._local) if file is not None]
        withheld = ""
        if key is not None and self._local is not None and key.path == self._local.path:
            withheld = _whyNotLocal(self._local, user, [*base, *auth])
            key = None if withheld else key
        if user is None or key is None:
            missing = " and no ".join(name for name, each in (("username", user), ("API key", key)) if each is None)
            searched = ", ".join(str(file.path) for file in files) or "no file, no home directory"
            raise InvalidSettings(
                f"No {missing} for {(base or auth)[0]}. Set RAXSR_USERNAME and RAXSR_API_KEY, or run "
                f"twistd -n service-registry-agent (searched: {searched}{withheld})"
            )
        # The certificate of this machine's registry is not valid for any other.
        isLocal = all(self.get(name, local=False) is None for name in ("baseUrl", "authUrl"))
        ca = self.get("caFile", local=isLocal) if self._tls else None
        verify, states = self.get("verify") if self._tls else None, configparser.ConfigParser.BOOLEAN_STATES
        if verify is not None and verify.value.lower() not in states:
            raise InvalidSettings(f"{verify.source}: invalid value {verify.value!r}. Use true or false")
        # Reading from a pipe a second time could take forever.
        isOnce = any(os.path.exists(file.path) and not os.path.isfile(file.path) for file in files)
        return Settings(
            username=user.value,
            apiKey=key.value,
            baseUrls=base,
            authUrls=auth,
            region=DEFAULT_REGION if region is None else region.value,
            verify=verify is None or states[verify.value.lower()],
            caFile=None if ca is None else ca.value,
            sources=self._sources,
            raxrcPath=key.path,
            readAgain=None if isOnce else self._readAgain,
        )

    def _readAgain(self) -> Settings:
        return _Lookup(self._explicit, self._environ, self._home, self._tls).read()

    def _urls(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        base, auth = self.get("baseUrl", local=False), self.get("authUrl", local=False)
        if base is None and auth is None:
            base, auth = self.get("baseUrl"), self.get("authUrl")
        if base is None and auth is None:
            self._sources["baseUrl"] = "the default"
            base = _Setting(DEFAULT_URL, "the default")
        baseUrls = () if base is None else parseUrls(base.value, base.source)
        if auth is not None:
            return baseUrls, tuple(url.removesuffix("/tokens") for url in parseUrls(auth.value, auth.source))
        # Beside the registry's, as the registry of this package has it.
        parts = map(urlsplit, baseUrls)
        return baseUrls, tuple(dict.fromkeys(f"{each.scheme}://{each.netloc}/v2.0" for each in parts))


def readSettings(
    *,
    username: str | None = None,
    apiKey: str | None = None,
    baseUrl: str | Iterable[str] | None = None,
    authUrl: str | Iterable[str] | None = None,
    region: str | None = None,
    verify: bool | None = None,
    caFile: str | None = None,
    tls: bool = True,
    environ: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> Settings:
    """
    The :class:`Settings` of a client: these values, and what is found for those that are not given.

    The URLs of the registry on this machine are used only when nothing else names a URL of either kind. With a URL of
    the Auth API only, its catalog has the registry's. With a URL of the registry only, the Auth API is expected beside
    it, at ``/v2.0``. Without both, the registry is :data:`DEFAULT_URL`.

    :param baseUrl: the registry's URL without the tenant; or several, in a sequence or separated by commas.
    :param authUrl: the Auth API's URL, or several.
    :param tls: false if nothing about TLS is needed, because the client is given an agent.
    :param environ: the environment; the process's own by default.
    :param home: the user's home directory; by default the one in the environment.
    :raises InvalidSettings: if a value or a file can't be used, or there are no credentials.
    """
    texts = {
        name: each if each is None or isinstance(each, str) else ",".join(each)
        for name, each in (("baseUrl", baseUrl), ("authUrl", authUrl))
    }
    texts |= {"username": username, "apiKey": apiKey, "region": region, "caFile": caFile}
    return _Lookup({**texts, "verify": None if verify is None else str(verify)}, environ, home, tls).read()


def namesRegistry(environ: Mapping[str, str] | None = None, home: Path | None = None) -> bool:
    """Whether the environment or the user's INI file names a registry or credentials; may raise InvalidSettings."""
    found = _Lookup({}, environ, home)
    return any(found.get(name, local=False) for name in ("baseUrl", "authUrl", "username", "apiKey"))


def _whyNotLocal(local: _IniFile, user: _Setting | None, urls: Iterable[str]) -> str:
    """Why the API key of this machine's registry is not for this user there, to end a message; empty if it is."""
    owner = local.get("username")
    if owner is None or user is None or owner.value != user.value:
        return f"; the API key in {local.path} is for another user"
    own = [local.get(name) for name in ("baseUrl", "authUrl")]
    hosts = {urlsplit(url).hostname for each in own if each is not None for url in parseUrls(each.value, each.source)}
    if all(_isLoopback(host) or host in hosts for host in (urlsplit(url).hostname for url in urls)):
        return ""
    return f"; the API key in {local.path} is only for the registry on this machine"


def _isLoopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False
