"""
The sources of URLs and credentials.
"""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
from twisted.trial.unittest import SynchronousTestCase

from txserviceregistry.errors import InvalidSettings
from txserviceregistry.settings import DEFAULT_URL, Settings, defaultDataDir, namesRegistry, parseUrls, readSettings

KEY = "the-api-key"


class ReadSettingsTests(SynchronousTestCase):
    """Arguments, environment, INI files, a registry on this machine: in this order."""

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.dataDir = self.home / ".local/state/txserviceregistry"
        self.dataDir.mkdir(parents=True)

    def raxrc(self, text: str, directory: Path | None = None, name: str = ".raxrc") -> Path:
        path = (directory or self.home) / name
        path.write_text(text)
        return path

    def local(
        self, text: str = f"[credentials]\nusername = local\napi_key = {KEY}\n[api]\nurl = http://l:1/v1.0\n"
    ) -> Path:
        return self.raxrc(text, self.dataDir, "raxrc")

    def read(self, environ: dict[str, str] | None = None, **arguments: Any) -> Settings:
        return readSettings(environ=environ or {}, home=self.home, **arguments)

    def refused(self, environ: dict[str, str] | None = None, **arguments: Any) -> str:
        return str(self.assertRaises(InvalidSettings, self.read, environ, **arguments))

    def test_eachPlaceGivesWayToTheOneBefore(self) -> None:
        """An argument wins over a variable, that over the INI file, that over the registry of this machine."""
        environ: dict[str, str] = {}
        arguments: dict[str, str] = {}

        def names() -> tuple[str, str]:
            settings = self.read(environ, **arguments)
            return settings.username, settings.baseUrls[0]

        self.local()
        self.assertEqual(names(), ("local", "http://l:1/v1.0"))
        self.raxrc(f"[credentials]\nusername = file\napi_key = {KEY}\n[api]\nurl = http://f/v1.0\n")
        self.assertEqual(names(), ("file", "http://f/v1.0"))
        environ.update(RAXSR_USERNAME="environ", RAXSR_API_URL="http://e/v1.0")
        self.assertEqual(names(), ("environ", "http://e/v1.0"))
        arguments.update(username="argument", baseUrl="http://a/v1.0")
        self.assertEqual(names(), ("argument", "http://a/v1.0"))

    def test_optionsThatAreNone(self) -> None:
        """A misspelt option is told by what there is, for it may be the key that stands there."""
        self.local()
        for text, told in (
            (
                f"[credentials]\nusername = joe\nkey = {KEY}\n",
                "unknown option in [credentials]. Use username or api_key",
            ),
            (f"[credentials]\n{KEY}==\n", "unknown option in [credentials]. Use username or api_key"),
            ("[api]\nurls = http://a/v1.0\n", "unknown option in [api]. Use url"),
            ("[ssl]\nca-file: /ca.pem\n", "unknown option in [ssl]. Use verify or ca_file"),
        ):
            path = self.raxrc(text)
            self.assertEqual(self.refused(), f"{path}: {told}")
        self.raxrc("[mine]\nkey = value\n[credentials]\nUsername = joe\nAPI_KEY = another\n")
        self.assertEqual(self.read().apiKey, "another")

    def test_theLocalKeyStaysOnThisMachine(self) -> None:
        """The API key of this machine's registry goes to this machine, and to the host that its file names."""
        path = self.local("[credentials]\nusername = local\napi_key = " + KEY + "\n[api]\nurl = https://Own:1/v1.0\n")
        for url in ("http://localhost/v1.0", "http://127.0.0.2:9/v1.0", "http://[::1]:9/v1.0", "https://own/v1.0"):
            self.assertEqual(self.read({"RAXSR_API_URL": url}).apiKey, KEY, url)
            self.assertEqual(self.read({"RAXSR_AUTH_URL": url}).apiKey, KEY, url)
        for environ in (
            {"RAXSR_API_URL": "http://elsewhere/v1.0"},
            {"RAXSR_API_URL": "http://localhost/v1.0,http://elsewhere/v1.0"},
            {"RAXSR_API_URL": "http://localhost.elsewhere/v1.0"},
            {"RAXSR_AUTH_URL": "http://10.0.0.1/v2.0"},
            {"RAXSR_API_URL": "http://localhost/v1.0", "RAXSR_AUTH_URL": "http://elsewhere/v2.0"},
        ):
            text = self.refused(environ)
            self.assertIn("No API key", text)
            self.assertTrue(text.endswith(f"key in {path} is only for the registry on this machine)"))
            self.assertEqual(self.read({**environ, "RAXSR_USERNAME": "joe", "RAXSR_API_KEY": "own"}).apiKey, "own")
        self.raxrc("[api]\nurl = http://elsewhere/v1.0\n")
        self.assertIn("No API key", self.refused())

    def test_theLocalKeyIsForTheLocalUser(self) -> None:
        """No other user is tried with the API key of this machine's registry."""
        path = self.local()
        self.assertEqual(self.read({"RAXSR_USERNAME": "local"}).apiKey, KEY)
        self.assertTrue(self.refused({"RAXSR_USERNAME": "joe"}).endswith(f"API key in {path} is for another user)"))

    def test_readAgain(self) -> None:
        """Settings can be read again: unchanged if nothing has changed, also those that were given only once."""
        arguments: dict[str, Any] = {"username": "joe", "region": "DFW", "verify": False, "caFile": "/ca.pem"}
        self.raxrc(f"[credentials]\napi_key = {KEY}\n")
        once: dict[str, Any] = {"baseUrl": iter(["http://a/v1.0"]), "authUrl": iter(["http://a/v2.0"])}
        settings = self.read({"RAXSR_USERNAME": "environ"}, **arguments, **once)
        assert settings.readAgain is not None
        self.assertEqual(settings.readAgain(), settings)
        self.raxrc("[credentials]\n\napi_key = another\n")
        changed = settings.readAgain()
        self.assertEqual(changed, attrs.evolve(settings, apiKey="another"))
        assert changed.readAgain is not None
        self.assertEqual(changed.readAgain(), changed)

    def test_readAgainFromAnotherFolder(self) -> None:
        """Files are where they were, when the program has gone to another folder since."""
        here = os.getcwd()
        named, state = os.path.relpath(self.local()), os.path.relpath(self.dataDir)
        for environ in ({"RAXSR_RAXRC": named}, {"RAXSR_DATA_DIR": state}, {}):
            settings = readSettings(environ=environ, home=self.home)
            assert settings.readAgain is not None
            os.chdir("/")
            try:
                self.assertEqual(settings.readAgain(), settings)
            finally:
                os.chdir(here)

    def test_whatIsNotAFileIsReadOnce(self) -> None:
        """A pipe gives its text once: a second reading would wait for another writer."""
        path = self.home / "pipe"
        os.mkfifo(path)
        text = f"[credentials]\nusername=joe\napi_key={KEY}\n"
        writer = threading.Thread(target=path.write_text, args=(text,), daemon=True)
        writer.start()
        settings = self.read({"RAXSR_RAXRC": str(path)})
        writer.join()
        self.assertEqual(settings.username, "joe")
        self.assertIsNone(settings.readAgain)

    def test_secretsOfTheReaderAreNotShown(self) -> None:
        """Settings can be pickled, as what reads them again; neither shows the key."""
        settings = self.read({"RAXSR_USERNAME": "joe", "RAXSR_API_KEY": KEY}, baseUrl="http://a/v1.0")
        self.assertNotIn(KEY, f"{settings!r} {settings.readAgain!r}")
        copied = pickle.loads(pickle.dumps(settings))
        self.assertEqual(copied, settings)
        self.assertEqual(copied.readAgain(), settings)

    def test_everySettingFromTheEnvironment(self) -> None:
        """Each variable of the design is read."""
        settings = self.read(
            {
                "RAXSR_USERNAME": "joe",
                "RAXSR_API_KEY": KEY,
                "RAXSR_API_URL": "http://a/v1.0, http://b/v1.0",
                "RAXSR_AUTH_URL": "https://auth/v2.0/",
                "RAXSR_REGION": "DFW",
                "RAXSR_SSL_VERIFY": "No",
                "RAXSR_CA_FILE": "/ca.pem",
            }
        )
        self.assertEqual((settings.username, settings.apiKey), ("joe", KEY))
        self.assertEqual(settings.baseUrls, ("http://a/v1.0", "http://b/v1.0"))
        self.assertEqual(settings.authUrls, ("https://auth/v2.0",))
        self.assertEqual((settings.region, settings.verify, settings.caFile), ("DFW", False, "/ca.pem"))

    def test_everySettingFromAFile(self) -> None:
        """Each option of the INI file is read, percent signs in a key included; RAXSR_RAXRC names another file."""
        path = self.raxrc(
            "[credentials]\nusername = joe\napi_key = 50%(x)%\n\n[api]\nurl=http://a/v1.0,http://b/v1.0\n"
            "[auth_api]\nurl: http://auth/v2.0/tokens\n[ssl]\nverify = on\nca_file = /ca.pem\n",
            name="other",
        )
        settings = self.read({"RAXSR_RAXRC": str(path)})
        self.assertEqual((settings.username, settings.apiKey), ("joe", "50%(x)%"))
        self.assertEqual(settings.baseUrls, ("http://a/v1.0", "http://b/v1.0"))
        self.assertEqual(settings.authUrls, ("http://auth/v2.0",))
        self.assertEqual((settings.verify, settings.caFile), (True, "/ca.pem"))
        self.assertEqual(settings.sources["baseUrl"], f"{path} ([api] url)")
        self.assertEqual(settings.raxrcPath, path.absolute())

    def test_emptyMeansNotSet(self) -> None:
        """An empty variable or option is none."""
        self.local()
        self.raxrc("[credentials]\nusername =\n[api]\nurl =\n")
        settings = self.read({"RAXSR_USERNAME": "", "RAXSR_API_URL": " "})
        self.assertEqual((settings.username, settings.baseUrls), ("local", ("http://l:1/v1.0",)))

    def test_authApiIsBesideTheRegistry(self) -> None:
        """Without a URL of its own the Auth API is expected at the registry's host, for each of several."""
        settings = self.read(
            username="joe", apiKey=KEY, baseUrl=["https://a:8/x/v1.0", "https://a:8/v1.0", "http://b/v1.0"]
        )
        self.assertEqual(settings.authUrls, ("https://a:8/v2.0", "http://b/v2.0"))

    def test_onlyAnAuthUrlMeansTheCatalog(self) -> None:
        """With an Auth API and no registry named, the catalog decides; the registry of this machine is another one."""
        self.local()
        settings = self.read(username="joe", apiKey=KEY, authUrl="http://auth/v2.0")
        self.assertEqual((settings.baseUrls, settings.authUrls), ((), ("http://auth/v2.0",)))

    def test_nothingNamedIsTheRegistryOfThisMachine(self) -> None:
        """With credentials only, the registry is the one at the default port of this machine."""
        settings = self.read(username="joe", apiKey=KEY)
        self.assertEqual(settings.baseUrls, (DEFAULT_URL,))
        self.assertEqual(settings.authUrls, ("http://127.0.0.1:8880/v2.0",))
        self.assertEqual(
            (settings.region, settings.verify, settings.caFile, settings.raxrcPath), ("us", True, None, None)
        )

    def test_missingCredentialsSayWhatToDo(self) -> None:
        """Without credentials the text says which are missing, where they were sought, and how to give them."""
        text = self.refused()
        for words in (
            "No username and no API key",
            DEFAULT_URL,
            "RAXSR_USERNAME",
            "service-registry-agent",
            str(self.home / ".raxrc"),
            str(self.dataDir / "raxrc"),
        ):
            self.assertIn(words, text)
        self.assertIn("No API key for", self.refused(username="joe"))
        self.assertIn("http://auth", self.refused(authUrl="http://auth/v2.0"))

    def test_brokenFilesAreNamedWithTheLine(self) -> None:
        """A file that can't be used is named with the line, whose text is not shown: it may hold the key."""
        for text, line in (
            (f"[credentials]\nusername = joe\napi_key {KEY}\n", 3),
            (f"{KEY}\n[credentials]\n", 1),
            (f"[credentials]\napi_key = {KEY}\napi_key = {KEY}\n", 3),
            ("[credentials]\n[api]\n[credentials]\n", 3),
        ):
            path = self.raxrc(text)
            said = self.refused()
            self.assertIn(f"{path}, line {line}:", said)
            self.assertNotIn(KEY, said)

    def test_unreadableFilesAreNamed(self) -> None:
        """A file that is no text, can't be opened, or was named and does not exist: the text says so."""
        path = self.home / ".raxrc"
        path.write_bytes(b"\xff\xfe\xfa")
        self.assertIn(f"{path} can't be read: invalid UTF-8", self.refused())
        path.unlink()
        path.mkdir()
        self.assertIn(f"{path} can't be read: Is a directory", self.refused())
        path.rmdir()
        self.assertIn("RAXSR_RAXRC: file /no/such/file does not exist", self.refused({"RAXSR_RAXRC": "/no/such/file"}))
        given = {"username": "joe", "apiKey": KEY, "baseUrl": "http://a/v1.0"}
        tooLong = {"RAXSR_DATA_DIR": "/" + "x" * 300}
        self.assertIn("can't be read: File name too long", self.refused(tooLong, **given))

    def test_badValuesAreNamedWithTheirSource(self) -> None:
        """A value that means nothing is refused with the place that it stands in."""
        who = {"username": "joe", "apiKey": KEY}
        path = self.raxrc("[ssl]\n# either or\nVerify = perhaps\n")
        self.assertIn(f"{path} ([ssl] verify): invalid value 'perhaps'", self.refused(**who))
        self.assertIn("the environment variable RAXSR_API_URL", self.refused({"RAXSR_API_URL": "ftp://x"}, **who))
        for url in ("nonsense", "http://a host:8880", "http://\x7f:8880"):
            self.assertIn("the argument baseUrl", self.refused(baseUrl=url, **who))
        self.assertIn("the argument authUrl", self.refused(authUrl=[], **who))

    def test_variablesThatAreNotTextAreNamed(self) -> None:
        """A variable with a byte that the locale's encoding can't decode is refused, and its value is not shown."""
        good = {"RAXSR_USERNAME": "joe", "RAXSR_API_KEY": KEY}
        for variable in ("RAXSR_USERNAME", "RAXSR_API_KEY", "RAXSR_API_URL", "RAXSR_CA_FILE"):
            refused = self.refused({**good, variable: "caf\udce9"})
            self.assertIn(f"the environment variable {variable} is not text", refused)
            self.assertNotIn("caf", refused)

    def test_filesAreReadOnlyWhenNeeded(self) -> None:
        """A broken file causes no error where all settings are given as arguments."""
        self.raxrc("nonsense")
        given = {"username": "joe", "apiKey": KEY, "baseUrl": "http://a/v1.0", "authUrl": "http://a/v2.0"}
        self.assertEqual(self.read(tls=False, **given).baseUrls, ("http://a/v1.0",))
        self.refused(**given)
        settings = self.read(verify=False, caFile="x", **given)
        self.assertEqual((settings.verify, settings.caFile), (False, "x"))

    def test_theKeyIsNotShown(self) -> None:
        """The repr of settings does not hold the key."""
        self.assertNotIn(KEY, repr(self.read(username="joe", apiKey=KEY)))

    def test_theProcessesOwnEnvironmentIsTheDefault(self) -> None:
        """Without an environment given, it is the process's."""
        self.patch(os, "environ", {"HOME": str(self.home), "RAXSR_USERNAME": "joe", "RAXSR_API_KEY": KEY})
        self.assertEqual(readSettings().username, "joe")
        self.assertEqual(defaultDataDir(), self.dataDir)
        self.assertTrue(namesRegistry())

    def test_whetherARegistryIsNamed(self) -> None:
        """namesRegistry() is about what the user says, not about what a registry on this machine has left."""
        self.local()
        self.assertFalse(namesRegistry({}, self.home))
        self.assertTrue(namesRegistry({"RAXSR_AUTH_URL": "http://auth"}, self.home))
        self.raxrc("[api]\nurl = http://a\n")
        self.assertTrue(namesRegistry({}, self.home))


class DataDirTests(SynchronousTestCase):
    """The registry's directory."""

    def test_threePlaces(self) -> None:
        """RAXSR_DATA_DIR, else below XDG_STATE_HOME (if it is absolute), else below the home directory."""
        home = Path("/home/joe")
        usual = home / ".local/state/txserviceregistry"
        self.assertEqual(defaultDataDir({"RAXSR_DATA_DIR": "/data", "XDG_STATE_HOME": "/x"}, home), Path("/data"))
        self.assertEqual(defaultDataDir({"XDG_STATE_HOME": "/x"}, home), Path("/x/txserviceregistry"))
        self.assertEqual(defaultDataDir({"XDG_STATE_HOME": "x"}, home), usual)
        self.assertEqual(defaultDataDir({"HOME": "/home/joe"}), usual)


class NoHomeTests(SynchronousTestCase):
    """A user without a home directory: no HOME, and no passwd entry."""

    def setUp(self) -> None:
        def noHome() -> Path:
            raise RuntimeError("Could not determine home directory.")

        self.patch(Path, "home", noHome)

    def test_whatIsGivenIsEnough(self) -> None:
        """Without a home directory the files in it do not exist."""
        settings = readSettings(username="joe", apiKey=KEY, baseUrl="http://a/v1.0", environ={})
        self.assertEqual((settings.username, settings.baseUrls), ("joe", ("http://a/v1.0",)))
        assert settings.readAgain is not None
        self.assertEqual(settings.readAgain(), settings)
        self.assertFalse(namesRegistry({}))
        self.assertTrue(namesRegistry({"RAXSR_API_URL": "http://a"}))

    def test_directoriesInTheHome(self) -> None:
        """Variables may begin with ~: no shell expands it in a unit of systemd."""
        with mock.patch.dict(os.environ, {"HOME": "/home/joe"}):
            self.assertEqual(defaultDataDir({"RAXSR_DATA_DIR": "~/data"}), Path("/home/joe/data"))
            refusal = self.assertRaises(InvalidSettings, readSettings, environ={"RAXSR_RAXRC": "~/settings"})
            self.assertIn("/home/joe/settings", str(refusal))

    def test_filesThatAreNamed(self) -> None:
        """Files that the environment names are read all the same."""
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "raxrc").write_text(f"[credentials]\nusername = joe\napi_key = {KEY}\n")
        for environ in ({"RAXSR_RAXRC": str(folder / "raxrc")}, {"RAXSR_DATA_DIR": str(folder)}):
            self.assertEqual(readSettings(environ=environ).apiKey, KEY)

    def test_whatIsMissing(self) -> None:
        """The text does not name files that can't be; the data directory has to be named."""
        error = self.assertRaises(InvalidSettings, readSettings, environ={})
        self.assertIn("no file, no home directory", str(error))
        error = self.assertRaises(InvalidSettings, defaultDataDir, {})
        self.assertIn("--data-dir", str(error))
        self.assertEqual(defaultDataDir({"XDG_STATE_HOME": "/x"}), Path("/x/txserviceregistry"))


class ParseUrlsTests(SynchronousTestCase):
    """URLs."""

    def test_oneForm(self) -> None:
        """Slashes at the end and ports that go without saying are dropped, as are repetitions; scripts are encoded."""
        for text, urls in (
            ("http://A.example:80/v1.0//", ("http://a.example/v1.0",)),
            ("https://a:443", ("https://a",)),
            ("https://a:80/v1.0", ("https://a:80/v1.0",)),
            ("HTTP://[::1]:8880/v1.0", ("http://[::1]:8880/v1.0",)),
            ("http://bücher/v1.0", ("http://xn--bcher-kva/v1.0",)),
            (" http://a/ , ,http://a,http://b", ("http://a", "http://b")),
        ):
            self.assertEqual(parseUrls(text, "here"), urls)

    def test_whatIsNoneIsRefused(self) -> None:
        """A URL that is not one of HTTP is refused with its source; a password in a URL is not shown."""
        for text in (
            "",
            " , ",
            "a:8880",
            "//a",
            "http://",
            "http://a:port",
            "http://a:99999",
            "http://[::1",
            "http://a/?q",
            "http://a/#f",
            "http://a/ b",
            "http://a/ü",
            "http://" + "ü" * 70,
        ):
            self.assertIn("here: ", str(self.assertRaises(InvalidSettings, parseUrls, text, "here")))
        said = str(self.assertRaises(InvalidSettings, parseUrls, "http://joe:s3cret@a/", "here"))
        self.assertNotIn("s3cret", said)
