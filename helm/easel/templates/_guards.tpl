{{/* What would be admitted and then never run, or run unguarded: refused here, with what to change. The first part is
     what easel.settings checks across fields, the second what KubeRay checks and only says in an event. */}}
{{- define "easel.guards" -}}
{{- $wrong := list -}}
{{- $values := .Values -}}
{{- $name := include "easel.fullname" . -}}
{{- $defaults := include "easel.defaults" . | fromJson -}}
{{- $tiers := include "easel.tiers" . | fromJson -}}
{{- $model := include "easel.model" . | fromJson -}}
{{- $groups := include "easel.groups" . | fromJson -}}
{{- $autoscaled := include "easel.autoscaled" . -}}
{{- $ours := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/part-of" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "app.kubernetes.io/created-by" -}}
{{- $api := mustMergeOverwrite (deepCopy $defaults.app.api) (deepCopy (dig "app" "api" dict .Values.serve)) -}}

{{- /* Who may call. */ -}}
{{- $sources := 0 -}}
{{- range list $values.keys.existingSecret $values.keys.entries $values.keys.externalSecret.enabled -}}
{{- if . -}}{{- $sources = add1 $sources -}}{{- end -}}
{{- end -}}
{{- if and (eq (int $sources) 0) (not $api.open_to_all) -}}
{{- $wrong = append $wrong "keys: anybody in the cluster could use the API; set keys.existingSecret, keys.entries or keys.externalSecret (docs/keys.md), or serve.app.api.open_to_all=true where something before it checks who calls" -}}
{{- end -}}
{{- if gt (int $sources) 1 -}}
{{- $wrong = append $wrong "keys: give one of existingSecret, entries and externalSecret, not several" -}}
{{- end -}}
{{- with $values.keys.externalSecret -}}
{{- if and .enabled (not (and .storeName .remoteKey)) -}}
{{- $wrong = append $wrong "keys.externalSecret: storeName and remoteKey say where the key file is; set both" -}}
{{- end -}}
{{- end -}}

{{- /* Settings. */ -}}
{{- if gt (len (dig "app" "models" dict .Values.serve)) 1 -}}
{{- $wrong = append $wrong "serve.app.models: this version serves exactly one model; take the others out (KEY: null, where another file of values has them)" -}}
{{- end -}}
{{- range $tier := list "ingress" "engine" -}}
{{- $grace := (get $tiers $tier).graceful_shutdown_timeout_s -}}
{{- if lt (float64 $grace) (float64 $api.request_timeout_s) -}}
{{- $wrong = append $wrong (printf "serve.deployments.%s.graceful_shutdown_timeout_s (%v) is below serve.app.api.request_timeout_s (%v): a replica that is replaced would cut streams; raise it" $tier $grace $api.request_timeout_s) -}}
{{- end -}}
{{- end -}}
{{- $scaling := $tiers.engine.autoscaling -}}
{{- $most := int $tiers.engine.replicas -}}
{{- if kindIs "map" $scaling -}}
{{- $most = int $scaling.max_replicas -}}
{{- if gt (int $scaling.min_replicas) (int $scaling.max_replicas) -}}
{{- $wrong = append $wrong (printf "serve.deployments.engine.autoscaling: min_replicas (%v) is above max_replicas (%v)" $scaling.min_replicas $scaling.max_replicas) -}}
{{- end -}}
{{- end -}}
{{- with $model.whole.engine -}}
{{- if and .prefix_cache (ne (mod 256 (int .kv_block_tokens)) 0) -}}
{{- $wrong = append $wrong (printf "serve.app.models.%s.engine.kv_block_tokens (%v) does not divide 256, as prefix_cache needs it: choose 16, 32, 64, 128 or 256, or switch prefix_cache off" $model.key .kv_block_tokens) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $model.whole.engine.device "cuda") (eq (float64 $tiers.engine.gpus) 0.0) -}}
{{- $wrong = append $wrong (printf "serve.app.models.%s.engine.device is cuda and serve.deployments.engine.gpus is 0: Ray would hide every GPU from the replica; set it to 1" $model.key) -}}
{{- end -}}

{{- if eq $model.whole.engine.kind "vllm" -}}
{{- range list "compile_cache" "deterministic" "kv_tokens" "kv_block_tokens" "step_timeout_s" "threads" -}}
{{- if ne (toJson (get $model.whole.engine .)) (toJson (get $defaults.model.engine .)) -}}
{{- $wrong = append $wrong (printf "serve.app.models.%s.engine.%s means nothing to the vllm engine, which would not start; take it out" $model.key .) -}}
{{- end -}}
{{- end -}}
{{- if or (eq $model.whole.engine.device "cpu") (eq (float64 $tiers.engine.gpus) 0.0) -}}
{{- $wrong = append $wrong (printf "serve.app.models.%s.engine.kind=vllm runs on GPUs alone: set serve.deployments.engine.gpus, and no device cpu" $model.key) -}}
{{- end -}}
{{- end -}}

{{- /* Replicas have room. */ -}}
{{- $cores := 0.0 -}}
{{- range $groups -}}
{{- $pods := int .maxReplicas -}}
{{- if not $autoscaled -}}{{- $pods = ternary (int .minReplicas) (int .replicas) (kindIs "invalid" .replicas) -}}{{- end -}}
{{- $_ := set . "most" $pods -}}
{{- $cores = addf $cores (mulf (float64 .cpus) (float64 $pods)) -}}
{{- end -}}
{{- $asked := addf (mulf (float64 $tiers.ingress.replicas) (float64 $tiers.ingress.cpus)) (mulf (float64 $most) (float64 $tiers.engine.cpus)) -}}
{{- if and $groups (gt (float64 $asked) (float64 $cores)) -}}
{{- $wrong = append $wrong (printf "serve.deployments: %v ingress replicas of %v cpus and %d engine replicas of %v need %v cpus, and all pods of workers together have %v; raise workers.GROUP.cpus or workers.GROUP.maxReplicas, or ask for less" $tiers.ingress.replicas $tiers.ingress.cpus $most $tiers.engine.cpus $asked $cores) -}}
{{- end -}}
{{- range $tier := list "ingress" "engine" -}}
{{- $asks := get $tiers $tier -}}
{{- $fits := false -}}
{{- $places := 0 -}}
{{- range $groups -}}
{{- if and (ge (float64 .cpus) (float64 $asks.cpus)) (ge (float64 .gpu.count) (float64 $asks.gpus)) -}}
{{- $fits = true -}}
{{- if gt (float64 $asks.gpus) 0.0 -}}
{{- $places = add $places (mul (int .most) (int (floor (divf (float64 .gpu.count) (float64 $asks.gpus))))) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not $fits -}}
{{- $wrong = append $wrong (printf "serve.deployments.%s asks for %v cpus and %v gpus, and no pod of any group in workers has that many; raise workers.GROUP.cpus or workers.GROUP.gpu.count, or ask for less" $tier $asks.cpus $asks.gpus) -}}
{{- else if and (eq $tier "engine") (gt (float64 $asks.gpus) 0.0) (lt (int $places) $most) -}}
{{- $wrong = append $wrong (printf "serve.deployments.engine: %d replicas of %v gpus do not fit into the %d places of workers; raise workers.GROUP.maxReplicas or lower the replicas" $most $asks.gpus (int $places)) -}}
{{- end -}}
{{- end -}}
{{- if not $groups -}}
{{- $wrong = append $wrong "workers: there is no group, and no replica runs on the head; name one" -}}
{{- end -}}
{{- if not (regexMatch "^(embedded:|/)" $model.whole.checkpoint) -}}
{{- $wrong = append $wrong (printf "serve.app.models.%s.checkpoint: %q is relative, and pods have no place that it could be relative to; give embedded:NAME or a path from /" $model.key $model.whole.checkpoint) -}}
{{- end -}}

{{- /* Checkpoints. */ -}}
{{- with $values.modelCache -}}
{{- if and (not .enabled) (hasPrefix (printf "%s/" .mountPath) $model.whole.checkpoint) -}}
{{- $wrong = append $wrong (printf "serve.app.models.%s.checkpoint lies under modelCache.mountPath, but modelCache.enabled is false; switch it on" $model.key) -}}
{{- end -}}
{{- if and .download.enabled (not .enabled) -}}
{{- $wrong = append $wrong "modelCache.download: there is nowhere to put it; set modelCache.enabled=true" -}}
{{- end -}}
{{- if .download.enabled -}}
{{- if not (and .download.repository .download.revision .download.folder) -}}
{{- $wrong = append $wrong "modelCache.download: repository, revision (the commit's full id) and folder say what goes where; set all three" -}}
{{- else if ne $model.whole.checkpoint (printf "%s/%s" .mountPath .download.folder) -}}
{{- $wrong = append $wrong (printf "modelCache.download fills %s/%s, but serve.app.models.%s.checkpoint is %s; make them the same" .mountPath .download.folder $model.key $model.whole.checkpoint) -}}
{{- end -}}
{{- end -}}
{{- if and .enabled (eq .kind "ephemeral") (not .download.enabled) -}}
{{- $wrong = append $wrong "modelCache: an ephemeral volume starts empty; set modelCache.download.enabled=true, or another kind" -}}
{{- end -}}
{{- end -}}

{{- /* Telemetry. */ -}}
{{- $collector := dig "app" "telemetry" "otlp_endpoint" "" .Values.serve -}}
{{- with $values.networkPolicy -}}
{{- if and $collector .enabled -}}
{{- $port := ternary 443 80 (hasPrefix "https:" $collector) -}}
{{- with (regexFind ":[0-9]+" (regexReplaceAll "^https?://" $collector "")) -}}{{- $port = int (trimPrefix ":" .) -}}{{- end -}}
{{- $open := false -}}
{{- range .telemetryPorts -}}{{- if eq (int .) (int $port) -}}{{- $open = true -}}{{- end -}}{{- end -}}
{{- if not (or .extraEgress (and .telemetry $open)) -}}
{{- $wrong = append $wrong (printf "serve.app.telemetry.otlp_endpoint: no policy lets replicas reach %s; name the collector in networkPolicy.telemetry and port %d in networkPolicy.telemetryPorts" $collector $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* KubeRay. */ -}}
{{- if gt (len $name) 47 -}}
{{- $wrong = append $wrong (printf "the name %q has %d characters, and KubeRay takes 47 at most; set fullnameOverride" $name (len $name)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- $wrong = append $wrong (printf "the name %q has to begin with a letter and hold small letters, digits and dashes only; set fullnameOverride" $name) -}}
{{- end -}}
{{- $account := include "easel.headServiceAccountName" . -}}
{{- if and $autoscaled (gt (len $account) 50) -}}
{{- $wrong = append $wrong (printf "the head's service account %q has %d characters, and KubeRay cuts what is above 50 off its beginning; set serviceAccount.name or fullnameOverride to something shorter" $account (len $account)) -}}
{{- end -}}
{{- range $key, $_ := $values.labels -}}
{{- if or (has $key $ours) (eq $key "helm.sh/chart") -}}
{{- $wrong = append $wrong (printf "labels: %s is the chart's own; take it out" $key) -}}
{{- end -}}
{{- end -}}
{{- range $group, $pod := $groups -}}
{{- if gt (int $pod.minReplicas) (int $pod.maxReplicas) -}}
{{- $wrong = append $wrong (printf "workers.%s: minReplicas (%v) is above maxReplicas (%v)" $group $pod.minReplicas $pod.maxReplicas) -}}
{{- end -}}
{{- if not (kindIs "invalid" $pod.replicas) -}}
{{- if or (lt (int $pod.replicas) (int $pod.minReplicas)) (gt (int $pod.replicas) (int $pod.maxReplicas)) -}}
{{- $wrong = append $wrong (printf "workers.%s: replicas (%v) is not between minReplicas (%v) and maxReplicas (%v)" $group $pod.replicas $pod.minReplicas $pod.maxReplicas) -}}
{{- end -}}
{{- end -}}
{{- if and (not $autoscaled) (not (kindIs "invalid" $pod.idleTimeoutSeconds)) -}}
{{- $wrong = append $wrong (printf "workers.%s.idleTimeoutSeconds: nothing removes idle pods while the autoscaler is off; take it out or set autoscaler.enabled=true" $group) -}}
{{- end -}}
{{- end -}}
{{- /* KubeRay refuses some of these, adds others a second time, and overwrites the rest. */ -}}
{{- $kuberays := list "RAY_enable_autoscaler_v2" "REDIS_PASSWORD" "REDIS_USERNAME" "RAY_REDIS_ADDRESS" "RAY_external_storage_namespace" "RAY_AUTH_MODE" "RAY_AUTH_TOKEN" "RAY_CLUSTER_NAME" "RAY_CLOUD_INSTANCE_ID" "RAY_NODE_TYPE_NAME" "RAY_ADDRESS" "RAY_PORT" "RAY_IP" "FQ_RAY_IP" "KUBERAY_GEN_RAY_START_CMD" -}}
{{- $pods := merge (dict "head" $values.head) $groups -}}
{{- range $group, $pod := $pods -}}
{{- $where := ternary "head" (printf "workers.%s" $group) (eq $group "head") -}}
{{- range $key, $_ := $pod.rayStartParams -}}
{{- if has $key (list "num-cpus" "num-gpus" "memory" "object-store-memory") -}}
{{- $wrong = append $wrong (printf "%s.rayStartParams.%s: the chart sets it from cpus, gpu.count, memory and objectStoreBytes; change those" $where $key) -}}
{{- else if has $key (list "labels" "resources" "block" "address" "redis-password" "redis-username" "metrics-export-port") -}}
{{- $wrong = append $wrong (printf "%s.rayStartParams.%s is KubeRay's own; take it out" $where $key) -}}
{{- end -}}
{{- end -}}
{{- range $list := list $values.env $pod.env -}}
{{- $names := list -}}
{{- range $list -}}
{{- if has .name $names -}}
{{- $wrong = append $wrong (printf "env: %s stands there twice; take one out" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if has .name $kuberays -}}
{{- $wrong = append $wrong (printf "env: %s is KubeRay's to set; use autoscaler, gcsFaultTolerance or auth" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $key, $_ := $pod.labels -}}
{{- if or (has $key $ours) (hasPrefix "easel.dev/" $key) (hasPrefix "ray.io/" $key) -}}
{{- $wrong = append $wrong (printf "%s.labels: %s is the chart's or KubeRay's own; take it out" $where $key) -}}
{{- end -}}
{{- end -}}
{{- range $pod.volumes -}}
{{- if has .name (list "tmp" "keys" "models" "scripts" "autoscaler-tmp" "autoscaler-token" "shared-mem" "ray-logs") -}}
{{- $wrong = append $wrong (printf "%s.volumes: %s is the chart's or KubeRay's own; choose another name" $where .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if hasKey $groups "head" -}}
{{- $wrong = append $wrong "workers.head: that name is the head's; choose another" -}}
{{- end -}}
{{- with semver $values.rayVersion -}}
{{- if and (eq $values.auth.mode "token") (or (lt (int .Major) 2) (and (eq (int .Major) 2) (lt (int .Minor) 52))) -}}
{{- $wrong = append $wrong (printf "auth.mode=token needs Ray 2.52 or newer, and rayVersion is %s" $values.rayVersion) -}}
{{- end -}}
{{- end -}}
{{- if eq $values.upgrade.strategy "NewClusterWithIncrementalUpgrade" -}}
{{- with $values.upgrade.incremental -}}
{{- if not .gatewayClassName -}}
{{- $wrong = append $wrong "upgrade.incremental.gatewayClassName: KubeRay makes a Gateway for it and needs its class; set it" -}}
{{- end -}}
{{- if not $autoscaled -}}
{{- $wrong = append $wrong "upgrade.strategy=NewClusterWithIncrementalUpgrade needs the autoscaler; set autoscaler.enabled=true" -}}
{{- end -}}
{{- if gt (int .stepSizePercent) (int .maxSurgePercent) -}}
{{- $wrong = append $wrong (printf "upgrade.incremental: stepSizePercent (%v) is above maxSurgePercent (%v)" .stepSizePercent .maxSurgePercent) -}}
{{- end -}}
{{- end -}}
{{- if or $values.httpRoute.enabled $values.ingress.enabled -}}
{{- $wrong = append $wrong (printf "upgrade.strategy=NewClusterWithIncrementalUpgrade has no Service %s-serve-svc to route to: KubeRay's own Gateway %s-gateway takes its place; switch httpRoute and ingress off and put your edge before that Gateway, or stay with NewCluster" $name $name) -}}
{{- end -}}
{{- if or (ne $values.service.type "ClusterIP") $values.service.annotations -}}
{{- $wrong = append $wrong "service: KubeRay ignores it with upgrade.strategy=NewClusterWithIncrementalUpgrade; leave it as it is by default, or stay with NewCluster" -}}
{{- end -}}
{{- end -}}
{{- with $values.gcsFaultTolerance.redis -}}
{{- if and .namespace (ne $values.upgrade.strategy "None") -}}
{{- $wrong = append $wrong "gcsFaultTolerance.redis.namespace: the two clusters of an upgrade would write over each other's state; leave it empty, or set upgrade.strategy=None" -}}
{{- end -}}
{{- if and (not .address) (or .username .password.secretName .namespace) -}}
{{- $wrong = append $wrong "gcsFaultTolerance.redis: there is no address; set it, or take the rest out" -}}
{{- end -}}
{{- end -}}
{{- if and $values.httpRoute.enabled (not $values.httpRoute.parentRefs) -}}
{{- $wrong = append $wrong "httpRoute.parentRefs: an HTTPRoute without a Gateway routes nothing; name one" -}}
{{- end -}}

{{- /* What the cluster has to know. */ -}}
{{- $cluster := include "easel.cluster" . -}}
{{- $check := $values.kuberay.check -}}
{{- if and (or (and (kindIs "invalid" $check) $cluster) (and (kindIs "bool" $check) $check)) (not (.Capabilities.APIVersions.Has "ray.io/v1/RayService")) -}}
{{- $wrong = append $wrong "KubeRay: the cluster does not know RayService (ray.io/v1). Install KubeRay 1.6 or newer first: docs/operators/install.md says how. Where Helm cannot see the cluster, give --api-versions ray.io/v1/RayService or set kuberay.check=false" -}}
{{- end -}}
{{- if $cluster -}}
{{- range list
  (list "httpRoute.enabled" $values.httpRoute.enabled "gateway.networking.k8s.io/v1/HTTPRoute" "the Gateway API")
  (list "monitoring.podMonitors.enabled" $values.monitoring.podMonitors.enabled "monitoring.coreos.com/v1/PodMonitor" "the Prometheus operator")
  (list "monitoring.rules.enabled" $values.monitoring.rules.enabled "monitoring.coreos.com/v1/PrometheusRule" "the Prometheus operator")
  (list "keys.externalSecret.enabled" $values.keys.externalSecret.enabled (printf "%s/ExternalSecret" $values.keys.externalSecret.apiVersion) "the external-secrets operator") -}}
{{- if and (index . 1) (not ($.Capabilities.APIVersions.Has (index . 2))) -}}
{{- $wrong = append $wrong (printf "%s: the cluster does not know %s; install %s, or switch it off" (index . 0) (index . 2) (index . 3)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- if $wrong -}}
{{- fail (printf "\n\n- %s\n" (join "\n- " (uniq $wrong))) -}}
{{- end -}}
{{- end }}
