"""What somebody must be allowed to do, and the rule that allows it.

Owns: naming a right and writing it as RBAC. Refuses to know: who has it; the API server says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from easel.kube.resources import Resource


@dataclass(frozen=True, order=True)
class Right:
    """A verb on a resource. `namespace` None: in all namespaces, or a kind that has none."""

    verb: str
    group: str
    resource: str
    namespace: str | None = None

    @classmethod
    def to(cls, verb: str, resource: Resource, namespace: str | None, subresource: str | None = None) -> Right:
        plural = resource.plural if subresource is None else f"{resource.plural}/{subresource}"
        return cls(verb, resource.group, plural, namespace if resource.namespaced else None)

    def __str__(self) -> str:
        name = f"{self.resource}.{self.group}" if self.group else self.resource
        where = f"in namespace {self.namespace}" if self.namespace else "in the whole cluster"
        return f"{self.verb} {name} {where}"


def rules(rights: Iterable[Right], name: str = "easel-operator") -> str:
    """Roles that hold exactly these rights, as YAML to be applied; a binding is left to whoever knows the people."""
    by_namespace: dict[str | None, dict[tuple[str, str], set[str]]] = defaultdict(lambda: defaultdict(set))
    for right in rights:
        by_namespace[right.namespace][right.group, right.resource].add(right.verb)
    documents = []
    for namespace, wanted in sorted(by_namespace.items(), key=lambda item: item[0] or ""):
        kind = "ClusterRole" if namespace is None else "Role"
        lines = ["apiVersion: rbac.authorization.k8s.io/v1", f"kind: {kind}", "metadata:", f"  name: {name}"]
        if namespace is not None:
            lines.append(f"  namespace: {namespace}")
        lines.append("rules:")
        for (group, resource), verbs in sorted(wanted.items()):
            spoken = ", ".join(f'"{verb}"' for verb in sorted(verbs))
            lines.append(f'  - apiGroups: ["{group}"]')
            lines.append(f'    resources: ["{resource}"]')
            lines.append(f"    verbs: [{spoken}]")
        documents.append("\n".join(lines))
    return "\n---\n".join(documents) + "\n"
