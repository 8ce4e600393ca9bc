"""The manifests for Kubernetes: valid, consistent, and with options and paths that the registry has."""

from __future__ import annotations

from typing import Any

import yaml
from twisted.trial.unittest import SynchronousTestCase

from tests import ROOT
from txserviceregistry.commands.registry import Options

MANIFESTS = ROOT / "examples" / "kubernetes"


class ManifestsTests(SynchronousTestCase):
    """Each file in ``examples/kubernetes``."""

    def manifests(self) -> dict[str, dict[str, Any]]:
        """The objects of each file, by their kinds."""
        found = {}
        for path in sorted(MANIFESTS.glob("*.yaml")):
            documents = list(yaml.safe_load_all(path.read_text()))
            found[path.name] = {each["kind"]: each for each in documents}
            self.assertEqual(len(found[path.name]), len(documents))
        return found

    def test_areValid(self) -> None:
        """Kubernetes accepts all fields of all objects."""
        # It takes seconds to import, also in runs of other tests.
        import kubernetes_validate

        # An old release that is still in use, and the newest one that the validator knows.
        versions = ("1.27", kubernetes_validate.latest_version())
        for name, objects in self.manifests().items():
            for each in objects.values():
                for version in versions:
                    try:
                        kubernetes_validate.validate(each, version, strict=True)
                    except kubernetes_validate.ValidationError as error:
                        self.fail(f"{name}, {each['kind']}: {error.message}")

    def test_belongTogether(self) -> None:
        """Services and disruption budgets select the pods, and ports and volumes have names that exist."""
        manifests = self.manifests()
        self.assertEqual(list(manifests), ["cluster.yaml", "registry.yaml"])
        for objects in manifests.values():
            workload = objects.get("Deployment") or objects["StatefulSet"]
            labels = workload["spec"]["template"]["metadata"]["labels"]
            for each in (workload, objects["PodDisruptionBudget"]):
                self.assertEqual(each["spec"]["selector"]["matchLabels"], labels)
            self.assertEqual(objects["Service"]["spec"]["selector"], labels)
            pod = workload["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            ports = {port["name"] for port in container["ports"]}
            self.assertEqual({port["targetPort"] for port in objects["Service"]["spec"]["ports"]}, ports)
            volumes = {each["name"] for each in pod["volumes"]}
            volumes |= {each["metadata"]["name"] for each in workload["spec"].get("volumeClaimTemplates", ())}
            self.assertEqual({each["name"] for each in container["volumeMounts"]}, volumes)

    def test_theRegistryHasTheOptionsAndPages(self) -> None:
        """The arguments are options of the registry, and the probes ask for its pages."""
        for objects in self.manifests().values():
            workload = objects.get("Deployment") or objects["StatefulSet"]
            (container,) = workload["spec"]["template"]["spec"]["containers"]
            options = Options()
            options.parseOptions(container["args"])
            self.assertEqual(options["listen"], ["tcp:8880"])
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                self.assertIn(container[probe]["httpGet"]["path"], ("/health/live", "/health/ready"))
