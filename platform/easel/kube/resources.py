"""The kinds that Easel looks at: group, version, plural.

Owns: their paths below the API server's root. Refuses to know: what is in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True)
class Resource:
    """One kind. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Below the root. Without `namespace`: of all namespaces."""
        parts = ["api", self.version] if not self.group else ["apis", self.group, self.version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/" + "/".join(quote(part, safe="") for part in parts)


RAY_SERVICES = Resource("ray.io", "v1", "rayservices")
RAY_CLUSTERS = Resource("ray.io", "v1", "rayclusters")
PODS = Resource("", "v1", "pods")
EVENTS = Resource("", "v1", "events")
NODES = Resource("", "v1", "nodes", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)
QUOTAS = Resource("", "v1", "resourcequotas")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices")
STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", namespaced=False)
DEPLOYMENTS = Resource("apps", "v1", "deployments")
GATEWAY_CLASSES = Resource("gateway.networking.k8s.io", "v1", "gatewayclasses", namespaced=False)
GATEWAYS = Resource("gateway.networking.k8s.io", "v1", "gateways")
HTTP_ROUTES = Resource("gateway.networking.k8s.io", "v1", "httproutes")
POD_MONITORS = Resource("monitoring.coreos.com", "v1", "podmonitors")
