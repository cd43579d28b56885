"""Values for which the chart is looked at: every environment, and every switch at least once.

Owns: the list. Refuses to know: what is asked of each.
"""

from __future__ import annotations

from typing import Any

from ops.chart.carried import environment_values, environments, merged
from tests.chart.helm import OPEN

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
DOWNLOAD = {
    "enabled": True,
    "repository": "owner/model",
    "revision": "0" * 40,
    "folder": "model-1",
    "sha256": {"config.json": HASH},
    "token": {"secretName": "hub"},
    "endpoint": "https://mirror.example",
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
}
CHECKPOINT = {"serve": {"app": {"models": {"m": {"checkpoint": "/models/model-1"}}}}}

SWITCHES: dict[str, dict[str, Any]] = {
    "open": {},
    "keys-secret": {"keys": {"existingSecret": "callers", "file": "mine.yaml"}},
    "keys-entries": {"keys": {"entries": [{"id": "team", "sha256": HASH, "weight": 2, "requests_per_minute": 600}]}},
    "keys-external": {
        "keys": {"externalSecret": {"enabled": True, "storeName": "vault", "remoteKey": "easel", "remoteProperty": "k"}}
    },
    "serve-proxy": {"proxy": "serve"},
    "autoscaler": {
        "workers": {"cpu": {"maxReplicas": 3, "idleTimeoutSeconds": 60}, "more": {"cpus": 4, "minReplicas": 0}},
        "serve": {"deployments": {"engine": {"autoscaling": {"min_replicas": 0, "max_replicas": 3}}}},
    },
    "gpu-groups": {
        "serve": {"deployments": {"engine": {"gpus": 1, "replicas": 3}}},
        "workers": {
            "h100": {
                "gpu": {"count": 2},
                "cpus": 16,
                "memory": "128Gi",
                "minReplicas": 3,
                "maxReplicas": 3,
                "nodeSelector": {"gpu": "h100"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "affinity": {"podAntiAffinity": {}},
                "priorityClassName": "gold",
                "runtimeClassName": "nvidia",
                "labels": {"team": "a"},
                "annotations": {"note": "b"},
                "env": [{"name": "NCCL_DEBUG", "value": "WARN"}],
                "rayStartParams": {"verbose": "true"},
                "resources": {"limits": {"cpu": "16"}, "requests": {"ephemeral-storage": "10Gi"}},
                "image": {"repository": "engine", "tag": "gpu"},
                "topologySpread": [
                    {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
                ],
            },
            "mig": {"gpu": {"count": 1, "resource": "nvidia.com/mig-3g.40gb"}, "topologySpread": [], "minAvailable": 1},
        },
    },
    "incremental": {
        "upgrade": {
            "strategy": "NewClusterWithIncrementalUpgrade",
            "incremental": {"gatewayClassName": "istio", "stepSizePercent": 10},
            "deletionDelaySeconds": 0,
            "initializingTimeout": "45m",
        },
        "autoscaler": {"enabled": True},
    },
    "frozen": {
        "upgrade": {"strategy": "None"},
        "suspend": True,
        "gcsFaultTolerance": {"redis": {"address": "rediss://redis:6380", "namespace": "n"}},
    },
    "no-token": {"auth": {"mode": "disabled"}, "networkPolicy": {"enabled": False}},
    "own-token": {"auth": {"secretName": "ray-token"}},
    "redis": {
        "gcsFaultTolerance": {"redis": {"address": "redis:6379", "username": "u", "password": {"secretName": "r"}}},
        "podDisruptionBudgets": {"head": True},
        "workers": {"cpu": {"minReplicas": 3, "maxReplicas": 3}},
    },
    "download-claim": {**CHECKPOINT, "modelCache": {"enabled": True, "download": DOWNLOAD}},
    "download-claim-there": {
        **CHECKPOINT,
        "modelCache": {"enabled": True, "claim": {"existing": "theirs"}, "download": DOWNLOAD},
    },
    "download-ephemeral": {**CHECKPOINT, "modelCache": {"enabled": True, "kind": "ephemeral", "download": DOWNLOAD}},
    "claim-by-hand": {**CHECKPOINT, "modelCache": {"enabled": True, "claim": {"storageClassName": ""}}},
    "load-balancer": {"service": {"type": "LoadBalancer", "annotations": {"lb": "internal"}}},
    "http-route": {
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "edge", "namespace": "gateways", "sectionName": "https"}],
            "hostnames": ["models.example"],
            "annotations": {"a": "b"},
        }
    },
    "ingress": {
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": ["models.example", "m.example"],
            "tls": [{"secretName": "cert", "hosts": ["models.example"]}],
            "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "8m"},
        }
    },
    "ingress-plain": {"ingress": {"enabled": True, "streamAnnotations": []}},
    "policies": {
        "networkPolicy": {
            "clients": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "edge"}}}],
            "telemetry": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "otel"}}}],
            "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        }
    },
    "no-budgets": {
        "podDisruptionBudgets": {"enabled": False},
        "workers": {"cpu": {"minReplicas": 2, "maxReplicas": 2}},
    },
    "priority": {"priorityClass": {"create": True, "value": 1_000_000, "preemption": "PreemptLowerPriority"}},
    "their-account": {"serviceAccount": {"create": False, "name": "theirs"}},
    "account-annotations": {"serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn"}}},
    "monitoring": {
        "monitoring": {
            "podMonitors": {"enabled": True, "labels": {"release": "prom"}, "interval": "5s"},
            "rules": {"enabled": True, "labels": {"release": "prom"}},
            "dashboards": {"enabled": True, "annotations": {"folder": "Easel"}},
        }
    },
    "no-test": {"test": {"enabled": False}},
    "test-key": {
        "keys": {"existingSecret": "callers"},
        "test": {"apiKey": {"secretName": "mine"}, "model": "m", "prompt": 'say "hi"', "maxTokens": 5},
    },
    "image": {
        "image": {
            "registry": "mirror.example/x",
            "digest": "sha256:" + "0" * 64,
            "pullPolicy": "Always",
            "pullSecrets": ["pull"],
        },
        "head": {"image": {"repository": "head", "tag": "small"}},
    },
    "long-name": {
        **CHECKPOINT,
        "fullnameOverride": "e" * 45,
        "modelCache": {"enabled": True, "download": DOWNLOAD},
        "workers": {"cpu": {"maxReplicas": 2}, "g" * 30: {"minReplicas": 2, "maxReplicas": 3}},
        "networkPolicy": {"hubPorts": [3128]},
    },
    "extra": {
        "labels": {"team": "a"},
        "env": [{"name": "A", "value": "1"}, {"name": "RAY_SERVE_LOG_TO_STDERR", "value": "0"}],
        "head": {"env": [{"name": "A", "value": "2"}], "rayStartParams": {"dashboard-host": "127.0.0.1"}},
        "workers": {
            "cpu": {
                "env": [{"name": "B", "valueFrom": {"secretKeyRef": {"name": "b", "key": "b"}}}],
                "volumes": [{"name": "authority", "configMap": {"name": "authority"}}],
                "volumeMounts": [{"name": "authority", "mountPath": "/etc/ssl/authority", "readOnly": True}],
                "topologySpread": [
                    {
                        "maxSkew": 1,
                        "topologyKey": "rack",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": {"team": "a"}},
                    }
                ],
            }
        },
        "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-x"}}],
        "nameOverride": "canvas",
        "global": {"anything": True},
    },
}

ENVIRONMENTS = {f"deployments/{name}": environment_values(files) for name, files in environments()}
"""By folder."""

ADDITIONS = {
    f"deployments/{name}/{extra.stem}": environment_values([*files, extra])
    for name, files in environments()
    for extra in sorted(files[-1].parent.glob("*.yaml"))
    if extra.name not in ("values.yaml", "serve.yaml", "serve-kubernetes.yaml", "easel.yaml")
}
"""What may be laid upon them."""

CASES: dict[str, dict[str, Any]] = {
    **{name: merged(OPEN, values) for name, values in SWITCHES.items()},
    **ENVIRONMENTS,
    **ADDITIONS,
}
"""All, by name."""
