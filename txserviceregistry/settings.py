"""
Where URLs and credentials come from: arguments, the environment, INI files, a registry on this machine.

Each value is looked up in that order, by itself, and only when it is needed: a file that nothing is wanted of is not
read.
"""

from __future__ import annotations

import configparser
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import attrs

from .errors import InvalidSettings

__all__ = [
    "DEFAULT_URL",
    "Setting",
    "Settings",
    "authUrlFor",
    "defaultDataDir",
    "namesRegistry",
    "parseUrls",
    "readSettings",
]

#: Where a registry on this machine listens, unless it was told otherwise.
DEFAULT_URL = "http://127.0.0.1:8880/v1.0"

_DEFAULT_REGION = "us"

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

# The options that each section of an INI file may have. Other sections are somebody else's.
_OPTIONS: dict[str, list[str]] = {}
for _, _place in _NAMES.values():
    if _place is not None:
        _OPTIONS.setdefault(_place[0], []).append(_place[1])

# The environment variables that name files and folders.
_PATHS = ("RAXSR_RAXRC", "RAXSR_DATA_DIR")

_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

_DEFAULT_PORTS = {"http": 80, "https": 443}


@attrs.frozen
class Setting:
    """
    A value, and where it comes from.

    :ivar value: the text, as it stands there. May be a secret.
    :ivar source: for texts: an argument's name, a variable's, or a file with a line's number.
    :ivar path: the file, if it comes from one.
    """

    value: str = attrs.field(repr=False)
    source: str
    path: Path | None = None


@attrs.frozen
class Settings:
    """
    What a client needs to know before it can ask anything.

    :ivar username: the user's name.
    :ivar apiKey: the user's key, a secret.
    :ivar baseUrls: the registry's URLs, without the tenant; empty: what the Auth API's catalog says for the region.
    :ivar authUrls: the Auth API's URLs.
    :ivar region: which registry to take of a catalog with several.
    :ivar verify: whether TLS certificates are verified.
    :ivar caFile: the certificates to trust, instead of those that the platform trusts.
    :ivar sources: where each came from, for texts, by the name of the argument of :func:`readSettings`. Settings that
        differ in this only are equal.
    :ivar raxrcPath: the INI file that the key comes from, if it comes from one; absolute.
    :ivar readAgain: finds out what holds by now: what :func:`readSettings` does with the same arguments, in the same
        environment and places; ``None`` if the settings were not read but made.
    """

    username: str
    apiKey: str = attrs.field(repr=False)
    baseUrls: tuple[str, ...]
    authUrls: tuple[str, ...]
    region: str = _DEFAULT_REGION
    verify: bool = True
    caFile: str | None = None
    sources: Mapping[str, str] = attrs.field(factory=dict, eq=False)
    raxrcPath: Path | None = None
    readAgain: Callable[[], Settings] | None = attrs.field(default=None, eq=False, repr=False)


def _homeIn(environ: Mapping[str, str], home: Path | None) -> Path | None:
    if home is not None or environ.get("HOME"):
        return home or Path(environ["HOME"])
    try:
        return Path.home()
    except RuntimeError:
        # Neither HOME nor a passwd entry, as in a container that runs as a bare user id. No file can be there.
        return None


def defaultDataDir(environ: Mapping[str, str] | None = None, home: Path | None = None) -> Path:
    """
    Where the registry of this machine keeps its data: ``RAXSR_DATA_DIR``, else ``$XDG_STATE_HOME/txserviceregistry``,
    else ``~/.local/state/txserviceregistry``.

    :param environ: the environment; the process's own by default.
    :param home: the user's home directory; by default what the environment says.
    :raises InvalidSettings: if none of these is known: the user has no home directory.
    """
    environ = os.environ if environ is None else environ
    found = _dataDirIn(environ, _homeIn(environ, home))
    if found is None:
        raise InvalidSettings(
            "There is no default data directory, because this user has no home directory (HOME is not set, and there "
            "is no passwd entry): give --data-dir, or set RAXSR_DATA_DIR"
        )
    return found


def _dataDirIn(environ: Mapping[str, str], home: Path | None) -> Path | None:
    if environ.get("RAXSR_DATA_DIR"):
        return Path(environ["RAXSR_DATA_DIR"])
    state = environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path there is invalid, and to be ignored.
    if os.path.isabs(state):
        return Path(state) / "txserviceregistry"
    return None if home is None else home / ".local" / "state" / "txserviceregistry"


def parseUrls(text: str | Iterable[str], source: str) -> tuple[str, ...]:
    """
    One URL or several, separated by commas, in one form: no slash at the end, no port that goes without saying.

    :param text: the URLs, or a sequence of them.
    :param source: where they come from, for texts.
    :raises InvalidSettings: if one can't be used. No text shows one that holds a password.
    """
    pieces = text.split(",") if isinstance(text, str) else list(text)
    urls = tuple(dict.fromkeys(_parseUrl(piece.strip(), source) for piece in pieces if piece.strip()))
    if not urls:
        raise InvalidSettings(f"{source}: there is no URL in it")
    return urls


def _parseUrl(url: str, source: str) -> str:
    if "@" in url.partition("?")[0]:
        raise InvalidSettings(f"{source}: a URL must not hold a username or a password; they are settings of their own")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError:
        raise InvalidSettings(f"{source}: {url!r} is no URL")
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise InvalidSettings(
            f"{source}: {url!r} is no URL of the form http://HOST:PORT/PATH or https://HOST:PORT/PATH"
        )
    if parts.query or parts.fragment or not re.fullmatch(r"[!-~]*", parts.path):
        raise InvalidSettings(f"{source}: {url!r} must have a plain path, and nothing behind it")
    host = f"[{host}]" if ":" in host else host
    netloc = host if port is None or port == _DEFAULT_PORTS[parts.scheme] else f"{host}:{port}"
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"


def authUrlFor(baseUrl: str) -> str:
    """Where the Auth API is when nobody says: beside the registry, as ours has it."""
    parts = urlsplit(baseUrl)
    return f"{parts.scheme}://{parts.netloc}/v2.0"


class _IniFile:
    """
    An INI file, read when it is first asked.

    :param mustExist: whether it is an error if there is none.
    :param isReadAgain: whether somebody has read it before. What is no file may give its text only once: a second
        reading of a pipe could take for ever.
    """

    def __init__(self, path: Path, *, mustExist: bool, isReadAgain: bool) -> None:
        self.path = path
        self._mustExist = mustExist
        self._isReadAgain = isReadAgain
        self._parser: configparser.ConfigParser | None = None
        self._lines: list[str] = []

    def get(self, name: str) -> Setting | None:
        place = _NAMES[name][1]
        if place is None:
            return None
        if self._parser is None:
            self._parser = self._read()
        value = (self._parser.get(*place, fallback="") or "").strip()
        if not value:
            return None
        source = f"{self.path}, line {self._lineOf(*place)} ([{place[0]}] {place[1]})"
        return Setting(value, source, self.path.absolute())

    def _read(self) -> configparser.ConfigParser:
        parser = configparser.ConfigParser(interpolation=None, default_section="")
        try:
            if self._isReadAgain and not stat.S_ISREG(self.path.stat().st_mode):
                raise InvalidSettings(f"{self.path} can't be read again: it is no regular file")
            text = self.path.read_text("utf-8-sig")
        except (FileNotFoundError, NotADirectoryError):
            if self._mustExist:
                raise InvalidSettings(f"{self.path}, which RAXSR_RAXRC names, does not exist")
            return parser
        except OSError as error:
            raise InvalidSettings(f"{self.path} can't be read: {error.strerror}")
        except UnicodeDecodeError:
            raise InvalidSettings(f"{self.path} can't be read: it is no UTF-8 text")
        self._lines = text.splitlines()
        try:
            parser.read_string(text)
        # The parser's own texts show the line: it may hold the key.
        except configparser.MissingSectionHeaderError as error:
            raise InvalidSettings(f"{self.path}, line {error.lineno}: a [section] has to come before anything else")
        except configparser.ParsingError as error:
            raise InvalidSettings(f"{self.path}, line {error.errors[0][0]}: neither [section] nor option = value")
        except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as error:
            raise InvalidSettings(f"{self.path}, line {error.lineno}: this is there twice")
        for section, options in _OPTIONS.items():
            for option in parser.options(section) if parser.has_section(section) else ():
                if option not in options:
                    # It is not shown: what somebody wrote in the wrong way may be the key.
                    line = self._lineOf(section, option)
                    raise InvalidSettings(
                        f"{self.path}, line {line}: [{section}] has no such option, but {' and '.join(options)}"
                    )
        return parser

    def _lineOf(self, section: str, option: str) -> int:
        current = ""
        for number, line in enumerate(self._lines, 1):
            if line.lstrip().startswith("["):
                current = line.strip().strip("[]")
            elif current == section and re.match(rf"\s*{re.escape(option)}\s*[=:]", line, re.IGNORECASE):
                return number
        return 0


class _Lookup:
    """
    The places to look at, in their order.

    :param isReadAgain: whether somebody has looked before.
    """

    def __init__(
        self,
        explicit: Mapping[str, str | None],
        environ: Mapping[str, str],
        home: Path | None,
        *,
        isReadAgain: bool = False,
    ) -> None:
        self._explicit = explicit
        self._environ = environ
        named = environ.get("RAXSR_RAXRC")
        # Without a home directory, the files in it do not exist.
        path = Path(named) if named else None if home is None else home / ".raxrc"
        self.files = [_IniFile(path, mustExist=bool(named), isReadAgain=isReadAgain)] if path else []
        dataDir = _dataDirIn(environ, home)
        self.local = _IniFile(dataDir / "raxrc", mustExist=False, isReadAgain=isReadAgain) if dataDir else None
        self.sources: dict[str, str] = {}

    def get(self, name: str, *, local: bool = True) -> Setting | None:
        """Find a value; *local* says whether the registry of this machine may give it."""
        for place in self._places(local):
            setting = place(name)
            if setting is not None:
                self.sources[name] = setting.source
                return setting
        return None

    def _places(self, local: bool) -> Iterator[Callable[[str], Setting | None]]:
        yield self._fromArgument
        yield self._fromEnvironment
        for file in self.files:
            yield file.get
        if local and self.local is not None:
            yield self.local.get

    def _fromArgument(self, name: str) -> Setting | None:
        value = self._explicit.get(name)
        return None if value is None else Setting(value, f"the argument {name}")

    def _fromEnvironment(self, name: str) -> Setting | None:
        variable = _NAMES[name][0]
        value = self._environ.get(variable, "").strip()
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            # Python puts half of a surrogate pair in place of a byte that it can't decode. It may be in a secret.
            raise InvalidSettings(
                f"the environment variable {variable} is not text in the encoding of the locale: write it in UTF-8, in "
                "a UTF-8 locale such as LC_ALL=C.UTF-8"
            ) from None
        return Setting(value, f"the environment variable {variable}") if value else None

    def isLocal(self, setting: Setting) -> bool:
        """Whether it is the registry of this machine that has given a value."""
        return self.local is not None and setting.path == self.local.path.absolute()

    def paths(self) -> str:
        files = [str(file.path) for file in [*self.files, self.local] if file is not None]
        return " and ".join(files) or "no file, because this user has no home directory"


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
    Find what was not given.

    The URLs of the registry on this machine are used only when nothing else names a URL of either kind. With an Auth
    API's URL and no registry's, the registry is found through the Auth API's catalog; with a registry's only, the Auth
    API is expected beside it, at ``/v2.0``; with neither, the registry is :data:`DEFAULT_URL`.

    :param username: the user's name.
    :param apiKey: the user's key.
    :param baseUrl: the registry's URL without the tenant; or several, in a sequence or separated by commas.
    :param authUrl: the Auth API's URL, or several.
    :param region: which registry to take of a catalog with several.
    :param verify: whether TLS certificates are verified.
    :param caFile: a PEM file with the certificates to trust.
    :param tls: false if nothing about TLS is needed, because somebody else does the connecting.
    :param environ: the environment; the process's own by default.
    :param home: the user's home directory; by default what the environment says.
    :raises InvalidSettings: if a value or a file can't be used, or there are no credentials.
    """
    environ = os.environ if environ is None else environ
    explicit = {
        "username": username,
        "apiKey": apiKey,
        "baseUrl": baseUrl if baseUrl is None or isinstance(baseUrl, str) else ",".join(baseUrl),
        "authUrl": authUrl if authUrl is None or isinstance(authUrl, str) else ",".join(authUrl),
        "region": region,
        "verify": None if verify is None else str(verify),
        "caFile": caFile,
    }
    return _Reader(explicit, environ, _homeIn(environ, home), tls).read()


@attrs.frozen
class _Reader:
    """
    Reads settings, and reads them again.

    :ivar explicit: the values that were given.
    :ivar tls: whether anything about TLS is needed.
    """

    explicit: Mapping[str, str | None] = attrs.field(repr=False)
    environ: Mapping[str, str] = attrs.field(repr=False)
    home: Path | None
    tls: bool
    isReadAgain: bool = False

    def read(self) -> Settings:
        found = _Lookup(self.explicit, self.environ, self.home, isReadAgain=self.isReadAgain)
        base, auth = _urls(found)
        user, key = found.get("username"), found.get("apiKey")
        withheld = ""
        if key is not None and found.isLocal(key):
            withheld = _whyNotLocal(found, user, [*base, *auth])
            key = None if withheld else key
        if user is None or key is None:
            missing = " and ".join(
                name for name, setting in (("no username", user), ("no API key", key)) if setting is None
            )
            raise InvalidSettings(
                f"There is {missing} for the service registry at {', '.join(base or auth)}. Give username and apiKey, "
                "set RAXSR_USERNAME and RAXSR_API_KEY, or write them under [credentials] into ~/.raxrc. A registry "
                "that runs on this machine (twistd -n --pidfile= service-registry-agent starts one) leaves them in a "
                f"file of its own. Looked at: {found.paths()}{withheld}"
            )
        # The certificate of this machine's registry says nothing about any other.
        isLocal = all(found.get(name, local=False) is None for name in ("baseUrl", "authUrl"))
        ca = found.get("caFile", local=isLocal) if self.tls else None
        where = found.get("region")
        return Settings(
            username=user.value,
            apiKey=key.value,
            baseUrls=base,
            authUrls=auth,
            region=_DEFAULT_REGION if where is None else where.value,
            verify=_boolean(found.get("verify")) if self.tls else True,
            caFile=None if ca is None else ca.value,
            sources=found.sources,
            raxrcPath=key.path,
            readAgain=self._again().read,
        )

    def _again(self) -> _Reader:
        if self.isReadAgain:
            return self
        # The working directory may be another one by then: twistd in the background changes it.
        paths = {name: os.path.abspath(self.environ[name]) for name in _PATHS if self.environ.get(name)}
        home = None if self.home is None else self.home.absolute()
        return attrs.evolve(self, environ={**self.environ, **paths}, home=home, isReadAgain=True)


def namesRegistry(environ: Mapping[str, str] | None = None, home: Path | None = None) -> bool:
    """
    Whether the environment or the user's INI file names a registry, or who to be there; what a registry on this
    machine has left in its data directory does not count.

    :param environ: the environment; the process's own by default.
    :param home: the user's home directory; by default what the environment says.
    :raises InvalidSettings: if a file can't be used.
    """
    environ = os.environ if environ is None else environ
    found = _Lookup({}, environ, _homeIn(environ, home))
    return any(found.get(name, local=False) for name in ("baseUrl", "authUrl", "username", "apiKey"))


def _urls(found: _Lookup) -> tuple[tuple[str, ...], tuple[str, ...]]:
    base = found.get("baseUrl", local=False)
    auth = found.get("authUrl", local=False)
    if base is None and auth is None:
        base, auth = found.get("baseUrl"), found.get("authUrl")
    if base is None and auth is None:
        found.sources["baseUrl"] = "the default"
        base = Setting(DEFAULT_URL, "the default")
    baseUrls = () if base is None else parseUrls(base.value, base.source)
    if auth is not None:
        return baseUrls, tuple(url.removesuffix("/tokens") for url in parseUrls(auth.value, auth.source))
    return baseUrls, tuple(dict.fromkeys(map(authUrlFor, baseUrls)))


def _whyNotLocal(found: _Lookup, user: Setting | None, urls: Iterable[str]) -> str:
    """Why the API key of this machine's registry is not for this user there, to be added to a text; else nothing."""
    if found.local is None:
        return ""
    owner = found.local.get("username")
    if owner is None or user is None or owner.value != user.value:
        return f"; the API key in {found.local.path} is for another user"
    own = [found.local.get(name) for name in ("baseUrl", "authUrl")]
    hosts = {urlsplit(url).hostname for each in own if each is not None for url in parseUrls(each.value, each.source)}
    if all(_isLoopback(host) or host in hosts for host in (urlsplit(url).hostname for url in urls)):
        return ""
    return f"; the API key in {found.local.path} is for the registry on this machine, and sent to no other"


def _isLoopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return False


def _boolean(setting: Setting | None) -> bool:
    if setting is None:
        return True
    try:
        return _BOOLEANS[setting.value.lower()]
    except KeyError:
        raise InvalidSettings(f"{setting.source}: {setting.value!r} is neither true nor false")
