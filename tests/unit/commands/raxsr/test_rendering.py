"""Rendering: what a template sees of the registry, and how it fails."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from tests.unit.commands.raxsr.templatecase import TemplateCase
from txserviceregistry.commands.raxsr.templates import NotCurrent, TemplateFailed, Views


class RenderingTests(TemplateCase):
    """One template, rendered once."""

    def setUp(self) -> None:
        super().setUp()
        self.views = Views(self.client)
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(self.views.stop())))

    def render(self, text: str, **options: bool) -> str:
        """The template's text, once its views are complete."""
        views = self.views
        if options:
            views = Views(self.client, **options)
            self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(views.stop())))
        template = self.template(text)
        while True:
            try:
                return template.render(views)
            except NotCurrent:
                self.fake.flush()
                self.successResultOf(Deferred.fromCoroutine(views.whenReady()))

    def fails(self, text: str, **options: bool) -> str:
        """Why a template can't be rendered."""
        with self.assertRaises(TemplateFailed) as caught:
            self.render(text, **options)
        self.assertEqual(len(str(caught.exception).splitlines()), 1)
        return str(caught.exception)

    def test_services(self) -> None:
        """The services of a tag by id, with what a configuration file needs of them."""
        self.create("web2", port="8002", host="::1", weight="5")
        self.create("web1", port="8001", host="10.0.0.1", zone="a")
        self.create("db1", ("db",))
        each = "{{ s.id }} {{ s.host }} {{ s.port }} {{ s.address }} {{ s.weight }};"
        text = f"{{% for s in services('www') %}}{each}{{% endfor %}}"
        self.assertEqual(self.render(text), "web1 10.0.0.1 8001 10.0.0.1:8001 100;web2 ::1 8002 [::1]:8002 5;")
        self.assertEqual(self.render("{% set s = services('www')[0] %}{{ s.metadata.zone }} {{ s.tags }}"), "a ['www']")
        self.assertEqual(self.render("{{ services()|map(attribute='id')|join(',') }}"), "db1,web1,web2")

    def test_aTextWithoutEnd(self) -> None:
        """Loops that write more than any configuration file has are an error."""
        text = "{% for i in range(1000) %}{{ 'x' * 100000 }}{% endfor %}"
        self.assertIn("the text is longer than 16 MiB", self.fails(text))

    def test_servicesThatCantReceiveConnections(self) -> None:
        """Services that are disabled, have weight 0 or no address are left out, unless all are asked for."""
        self.create("web1")
        self.create("web2", status="disabled")
        self.create("web3", weight="0")
        self.create("web4", port="")
        self.create("web5", host="a;b{}")
        self.create("web6", weight="1001")
        self.assertEqual(self.render("{{ services('www')|map(attribute='id')|join(',') }}"), "web1,web6")
        text = (
            "{% for s in services('www', all=true) %}"
            "{{ s.id }}:{{ s.state }}:{{ s.weight }}:{{ s.port is defined }} "
            "{% endfor %}"
        )
        self.assertEqual(
            self.render(text),
            "web1:up:100:True web2:out:100:True web3:up:0:True web4:up:100:False web5:up:100:False web6:up:100:True ",
        )
        self.assertIn("'web4' have no valid host and port", self.fails("{{ services('www', all=true)[3].address }}"))

    def test_states(self) -> None:
        """Services that are drained or out are left out, unless all are asked for."""
        for number, state in enumerate(("up", "drain", "out")):
            self.create(f"web{number}")
            self.successResultOf(self.other.services.setState(f"web{number}", state, "maintenance"))
        self.assertEqual(self.render("{{ services('www')|map(attribute='id')|join(',') }}"), "web0")
        text = "{{ services('www', all=true)|map(attribute='state')|join(',') }}"
        self.assertEqual(self.render(text), "up,drain,out")

    def test_oneService(self) -> None:
        """One service by its id; one that is not there is undefined."""
        self.create("web1")
        self.assertEqual(self.render("{{ service('web1').address }}"), "web1.example.org:80")
        self.assertEqual(self.render("{{ service('web2') is defined }}"), "False")
        self.assertEqual(self.fails("{{ service('web2').host }}"), "there is no service 'web2'")

    def test_values(self) -> None:
        """A value by its key, and those below a namespace by the rest of their keys."""
        self.set("/production/www/workers", "4")
        self.set("/production/www/deep/color", "red")
        self.set("/production/wwww", "7")
        self.set("color", "blue")
        self.assertEqual(self.render("{{ value('color') }} {{ value('/production/wwww') }}"), "blue 7")
        self.assertEqual(self.render("{{ value('size')|default('big') }}"), "big")
        self.assertEqual(self.fails("{{ value('size') }}"), "there is no configuration value 'size'")
        text = "{% for key, value in values('/production/www')|dictsort %}{{ key }}={{ value }} {% endfor %}"
        self.assertEqual(self.render(text), "deep/color=red workers=4 ")
        self.assertEqual(self.render("{{ values('/')|length }}"), "3")

    def test_aTagWithoutServices(self) -> None:
        """It is an error, unless the template or the caller allows it."""
        text = "{{ services('www')|length }}"
        self.assertIn("no service with tag 'www' can receive connections (--allow-empty", self.fails(text))
        self.assertIn("no service can receive connections", self.fails("{{ services() }}"))
        self.assertEqual(self.render(text, allowEmpty=True), "0")
        self.assertEqual(self.render("{{ services('www', empty=true)|length }}"), "0")

    def test_words(self) -> None:
        """The filter lets nothing pass that could end a word in a configuration file."""
        self.set("good", "http://[::1]:8000/a_b-c%20@x")
        self.assertEqual(self.render("{{ value('good')|word }}"), "http://[::1]:8000/a_b-c%20@x")
        for number, bad in enumerate(("a b", "a;b", "a\nb", "{", '"', "$x", "é", "#", "\\")):
            self.set(f"bad{number}", bad)
            self.assertIn("is not one word", self.fails(f"{{{{ value('bad{number}')|word }}}}"))

    def test_errorsOfTemplates(self) -> None:
        """Each is one line that says what is wrong."""
        for text, reason in (
            ("{% if %}", "line 1"),
            ("{{ missing }}", "'missing' is undefined"),
            ("{{ 1 / 0 }}", "ZeroDivisionError"),
            ("{% include 'other' %}", "other"),
            ("{{ services.__globals__ }}", "unsafe"),
            ("{% include '../../../../../../etc/passwd' %}", "etc/passwd"),
        ):
            self.assertIn(reason, self.fails(text), text)
        self.source.unlink()

    def test_aMissingTemplate(self) -> None:
        """A template that was removed is an error of one line."""
        template = self.template("x")
        self.source.unlink()
        with self.assertRaises(TemplateFailed) as caught:
            template.render(self.views)
        self.assertIn("template.j2", str(caught.exception))

    def test_aChangedTemplate(self) -> None:
        """A template that has changed is read again; it can include files beside it."""
        template = self.template("one")
        self.assertEqual(template.render(self.views), "one")
        (self.folder / "other").write_text("two\n")
        self.source.unlink()
        self.source.write_text("{% include 'other' %}\nthree\n")
        self.assertEqual(template.render(self.views), "two\nthree\n")

    def test_anUnreachableRegistry(self) -> None:
        """Nothing is rendered from views that may be wrong."""
        self.create("web1")
        text = "{{ services('www')|length }}"
        self.assertEqual(self.render(text), "1")
        self.fake.stop()
        self.fake.advance(30)
        with self.assertRaises(NotCurrent):
            self.template(text).render(self.views)
        self.fake.start()
        self.fake.advance(30)
        self.assertEqual(self.template(text).render(self.views), "1")
