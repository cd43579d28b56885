"""Custom kinds, as far as the chart writes them: every field by name and type, so that a misspelt one is found.

The API servers of a test machine know no custom kinds, so this stands in for their schemas: KubeRay 1.7, the
Prometheus operator, the Gateway API and external-secrets. Pods inside are checked as pods elsewhere.
"""

from __future__ import annotations

from typing import Any

import jsonschema

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
ANY: Schema = {}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def block(required: tuple[str, ...] = (), /, **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def rows(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def of(*values: str) -> Schema:
    return {"enum": list(values)}


META = block(("name", "labels"), name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
SECRET = block(
    ("valueFrom",), valueFrom=block(("secretKeyRef",), secretKeyRef=block(("name", "key"), name=TEXT, key=TEXT))
)
TEMPLATE = block(("metadata", "spec"), metadata=block(labels=TEXTS, annotations=TEXTS), spec=ANY)

RAY_CLUSTER = block(
    ("headGroupSpec", "rayVersion", "workerGroupSpecs"),
    rayVersion=TEXT,
    authOptions=block(("mode",), mode=of("token"), secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=block(
        ("version", "securityContext"),
        version=of("v2"),
        idleTimeoutSeconds=COUNT,
        upscalingMode=of("Default", "Conservative", "Aggressive"),
        imagePullPolicy=of("Always", "IfNotPresent", "Never"),
        resources=ANY,
        env=rows(ANY),
        securityContext=ANY,
        volumeMounts=rows(ANY),
    ),
    gcsFaultToleranceOptions=block(
        ("redisAddress",),
        redisAddress=TEXT,
        redisUsername={"anyOf": [SECRET, block(("value",), value=TEXT)]},
        redisPassword=SECRET,
        externalStorageNamespace=TEXT,
    ),
    headGroupSpec=block(("template", "rayStartParams"), rayStartParams=TEXTS, template=TEMPLATE),
    workerGroupSpecs=rows(
        block(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            idleTimeoutSeconds=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
RAY_SERVICE = block(
    ("serveConfigV2", "rayClusterConfig"),
    suspend=FLAG,
    excludeHeadPodFromServeSvc=FLAG,
    rayClusterDeletionDelaySeconds=COUNT,
    serveConfigV2=TEXT,
    upgradeStrategy=block(
        ("type",),
        type=of("NewCluster", "NewClusterWithIncrementalUpgrade", "None"),
        clusterUpgradeOptions=block(
            ("stepSizePercent", "intervalSeconds", "gatewayClassName"),
            maxSurgePercent=COUNT,
            stepSizePercent=COUNT,
            intervalSeconds=COUNT,
            gatewayClassName=TEXT,
        ),
    ),
    serveService=block(("spec",), metadata=block(labels=TEXTS, annotations=TEXTS), spec=block(("type",), type=TEXT)),
    rayClusterConfig=RAY_CLUSTER,
)
RELABELINGS = rows(block(("targetLabel",), sourceLabels=rows(TEXT), regex=TEXT, targetLabel=TEXT, replacement=TEXT))
POD_MONITOR = block(
    ("selector", "podMetricsEndpoints"),
    jobLabel=TEXT,
    selector=block(("matchLabels",), matchLabels=TEXTS),
    podMetricsEndpoints=rows(
        block(
            ("port",),
            port=TEXT,
            interval={"type": "string", "pattern": r"^([0-9]+(s|m|h))+$"},
            relabelings=RELABELINGS,
            metricRelabelings=RELABELINGS,
        )
    ),
)
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(ms|[smhdwy]))+$"}
PROMETHEUS_RULE = block(
    ("groups",),
    groups=rows(
        block(
            ("name", "rules"),
            name=TEXT,
            interval=DURATION,
            rules=rows(
                block(
                    ("expr",),
                    record=TEXT,
                    alert=TEXT,
                    expr=TEXT,
                    labels=TEXTS,
                    annotations=TEXTS,
                    keep_firing_for=DURATION,
                    **{"for": DURATION},
                )
            ),
        )
    ),
)
HTTP_ROUTE = block(
    ("parentRefs", "rules"),
    parentRefs=rows(block(("name",), name=TEXT, namespace=TEXT, sectionName=TEXT, group=TEXT, kind=TEXT, port=COUNT)),
    hostnames=rows(TEXT),
    rules=rows(
        block(
            ("backendRefs",),
            matches=rows(block(path=block(type=of("PathPrefix"), value=TEXT))),
            timeouts=block(request=TEXT, backendRequest=TEXT),
            backendRefs=rows(block(("name", "port"), name=TEXT, port=COUNT)),
        )
    ),
)
EXTERNAL_SECRET = block(
    ("secretStoreRef", "target", "data"),
    refreshInterval=TEXT,
    secretStoreRef=block(("kind", "name"), kind=TEXT, name=TEXT),
    target=block(("name",), name=TEXT),
    data=rows(block(("secretKey", "remoteRef"), secretKey=TEXT, remoteRef=block(("key",), key=TEXT, property=TEXT))),
)

CUSTOM: dict[tuple[str, str], Schema] = {
    ("ray.io/v1", "RayService"): RAY_SERVICE,
    ("monitoring.coreos.com/v1", "PodMonitor"): POD_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PROMETHEUS_RULE,
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): HTTP_ROUTE,
    ("external-secrets.io/v1", "ExternalSecret"): EXTERNAL_SECRET,
}


def is_custom(item: dict[str, Any]) -> bool:
    return (item["apiVersion"], item["kind"]) in CUSTOM


def check_custom(item: dict[str, Any]) -> None:
    """Raises `jsonschema.ValidationError`."""
    spec = CUSTOM[item["apiVersion"], item["kind"]]
    whole = block(("metadata", "spec"), apiVersion=TEXT, kind=TEXT, metadata=META, spec=spec)
    jsonschema.Draft7Validator(whole).validate(item)
