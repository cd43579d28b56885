{{/* Environment of every Ray container: (dict "root" $ "pod" BLOCK). `ray start` hands it to whatever it starts. A name
     that is given takes the place of the chart's, and a pod's that of all pods': Kubernetes takes no name twice. */}}
{{- define "easel.env" -}}
{{- $given := dict -}}
{{- $order := list -}}
{{- range concat (default list .root.Values.env) (default list .pod.env) -}}
{{- $_ := set $given .name . -}}
{{- $order = append $order .name -}}
{{- end -}}
{{- range (include "easel.ownEnv" .root | fromYamlArray) -}}
{{- if not (hasKey $given .name) }}
- {{ toJson . }}
{{- end -}}
{{- end -}}
{{- range uniq $order }}
- {{ toJson (get $given .) }}
{{- end -}}
{{- end }}

{{/* What the chart itself sets there. */}}
{{- define "easel.ownEnv" -}}
- {name: HOME, value: /tmp}
- {name: HF_HUB_OFFLINE, value: "1"}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
# What is logged reaches the container's output; Serve keeps its files beside that.
- {name: RAY_LOG_TO_STDERR, value: "1"}
- {name: RAY_SERVE_LOG_TO_STDERR, value: "1"}
# A stuck replica cannot finish its requests: waiting for that would hold its clients for minutes.
- {name: RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS, value: "1"}
- {name: RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S, value: "1"}
- {name: RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S, value: "5"}
{{- if eq .Values.proxy "haproxy" }}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
- {name: RAY_SERVE_THROUGHPUT_OPTIMIZED, value: "1"}
# What a reload left running may finish: the longest that a request may be allowed to take.
- {name: RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S, value: "86400"}
# Two lines of HAProxy's defaults: Serve has no switch for the second. A HAProxy that splices requests does not notice
# a client that leaves while its answer is silent, and the slot stays taken.
- {name: RAY_SERVE_HAPROXY_RETRY_ON, value: "conn-failure\n    no option splice-request"}
# Nobody listens there: the ingress logs requests.
- {name: RAY_SERVE_HAPROXY_LOG_TARGET, value: /tmp/haproxy-no-log}
{{- end }}
{{- end }}

{{/* What the head and workers have in common in a pod's spec: (dict "root" $ "pod" BLOCK "group" NAME). */}}
{{- define "easel.podPlace" -}}
{{- $root := .root -}}
{{- $group := .group -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml $root.Values.podSecurityContext | nindent 2 }}
terminationGracePeriodSeconds: {{ .pod.terminationGracePeriodSeconds }}
{{- with (default (include "easel.priorityClassName" $root) .pod.priorityClassName) }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pod.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $spread := list -}}
{{- if kindIs "slice" .pod.topologySpread -}}
{{- $spread = .pod.topologySpread -}}
{{- else if ne $group "head" -}}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" -}}
{{- $spread = append $spread (dict "maxSkew" 1 "topologyKey" . "whenUnsatisfiable" "ScheduleAnyway") -}}
{{- end -}}
{{- end }}
{{- if $spread }}
topologySpreadConstraints:
  {{- range $spread }}
  {{- if not (hasKey . "labelSelector") }}
  - labelSelector:
      matchLabels:
        {{- include "easel.selector" $root | nindent 8 }}
        easel.dev/group: {{ $group }}
    {{- if not (hasKey . "matchLabelKeys") }}
    # Pods of the other cluster of an upgrade do not count.
    matchLabelKeys: [ray.io/cluster]
    {{- end }}
    {{- toYaml . | nindent 4 }}
  {{- else }}
  - {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "easel.podMetadata" -}}
labels:
  {{- include "easel.selector" .root | nindent 2 }}
  app.kubernetes.io/component: {{ ternary "head" "worker" (eq .group "head") }}
  easel.dev/group: {{ .group }}
  {{- with .pod.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .pod.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* resources of a Ray container: (dict "pod" BLOCK). */}}
{{- define "easel.resources" -}}
{{- $requests := dict "cpu" (toString .pod.cpus) "memory" .pod.memory -}}
{{- $limits := dict "memory" .pod.memory -}}
{{- with .pod.gpu -}}
{{- if gt (int .count) 0 -}}
{{- $_ := set $requests .resource (toString .count) -}}
{{- $_ := set $limits .resource (toString .count) -}}
{{- end -}}
{{- end -}}
{{- toYaml (mustMergeOverwrite (dict "requests" $requests "limits" $limits) (deepCopy .pod.resources)) -}}
{{- end }}

{{- define "easel.headTemplate" -}}
{{- $scope := dict "root" . "pod" .Values.head "group" "head" -}}
metadata:
  {{- include "easel.podMetadata" $scope | nindent 2 }}
spec:
  serviceAccountName: {{ include "easel.headServiceAccountName" . }}
  {{- include "easel.podPlace" $scope | nindent 2 }}
  containers:
    - name: ray-head
      image: {{ include "easel.image" (dict "root" . "image" .Values.head.image) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      ports:
        - {name: gcs-server, containerPort: 6379}
        - {name: client, containerPort: 10001}
        - {name: serve, containerPort: 8000}
        - {name: dashboard, containerPort: 8265}
        - {name: metrics, containerPort: 8080}
        - {name: as-metrics, containerPort: 44217}
        - {name: dash-metrics, containerPort: 44227}
      env:
        {{- include "easel.env" $scope | nindent 8 }}
      resources:
        {{- include "easel.resources" $scope | nindent 8 }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- with .Values.head.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- with .Values.head.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if include "easel.autoscaled" . }}
    - name: autoscaler-tmp
      emptyDir: {}
    # For the autoscaler's container alone: what else runs on the head has no business with the API server.
    - name: autoscaler-token
      projected:
        defaultMode: 0444
        sources:
          - serviceAccountToken: {path: token, expirationSeconds: 3607}
          - configMap:
              name: kube-root-ca.crt
              items:
                - {key: ca.crt, path: ca.crt}
          - downwardAPI:
              items:
                - path: namespace
                  fieldRef: {fieldPath: metadata.namespace}
    {{- end }}
{{- end }}

{{/* (dict "root" $ "pod" BLOCK "group" NAME) */}}
{{- define "easel.workerTemplate" -}}
{{- $root := .root -}}
{{- $cache := $root.Values.modelCache -}}
{{- $keys := include "easel.keysSecret" $root -}}
metadata:
  {{- include "easel.podMetadata" . | nindent 2 }}
spec:
  serviceAccountName: {{ include "easel.serviceAccountName" $root }}
  {{- include "easel.podPlace" . | nindent 2 }}
  {{- if and $cache.enabled $cache.download.enabled }}
  initContainers:
    - name: checkpoint
      {{- include "easel.download" (dict "root" $root "image" (include "easel.image" (dict "root" $root "image" .pod.image)) "wait" (eq $cache.kind "claim")) | nindent 6 }}
  {{- end }}
  containers:
    - name: ray-worker
      image: {{ include "easel.image" (dict "root" $root "image" .pod.image) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      ports:
        - {name: serve, containerPort: 8000}
        - {name: metrics, containerPort: 8080}
        {{- if eq $root.Values.proxy "haproxy" }}
        - {name: haproxy-metrics, containerPort: 9101}
        {{- end }}
      env:
        {{- include "easel.env" . | nindent 8 }}
      resources:
        {{- include "easel.resources" . | nindent 8 }}
      securityContext:
        {{- toYaml $root.Values.securityContext | nindent 8 }}
      # KubeRay's own gives up on a pod after one miss of two seconds: a busy moment would take all endpoints away.
      readinessProbe:
        exec:
          command:
            - bash
            - -c
            - >-
              wget --tries 1 -T 5 -q -O- http://localhost:52365/api/local_raylet_healthz | grep success &&
              wget --tries 1 -T 5 -q -O- http://localhost:8000/-/healthz | grep success
        initialDelaySeconds: 10
        periodSeconds: 5
        timeoutSeconds: 11
        failureThreshold: 3
      # A pod that is told to go hands its replicas over first: Serve starts others elsewhere and lets these finish.
      lifecycle:
        preStop:
          exec:
            command:
              - bash
              - -c
              - |
                {{- include "easel.handOver" . | nindent 16 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if $keys }}
        - {name: keys, mountPath: /etc/easel/keys, readOnly: true}
        {{- end }}
        {{- if $cache.enabled }}
        - {name: models, mountPath: {{ $cache.mountPath }}, readOnly: true}
        {{- end }}
        {{- with .pod.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {}
    {{- with .pod.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if $keys }}
    - name: keys
      secret:
        secretName: {{ $keys }}
        defaultMode: 0440
    {{- end }}
    {{- if $cache.enabled }}
    {{- include "easel.modelVolume" $root | nindent 4 }}
    {{- if $cache.download.enabled }}
    - name: scripts
      configMap:
        name: {{ include "easel.fullname" $root }}-scripts
    {{- end }}
    {{- end }}
{{- end }}

{{/* What a worker does before it ends: waits until nobody is sent here any more, asks Ray to move what is here, and waits
     until no replica is left and no connection to port 8000 (1F40) is open. Without a head there is nobody to ask, and
     nothing worth waiting for: the whole cluster goes. */}}
{{- define "easel.handOver" -}}
{{- $most := sub (int .pod.terminationGracePeriodSeconds) 15 -}}
head() { timeout 2 bash -c ": > /dev/tcp/$FQ_RAY_IP/${RAY_PORT:-6379}" 2> /dev/null; }
busy() {
  grep -qs "^ray::ServeReplica" /proc/[0-9]*/cmdline ||
    grep -qsE "^ *[0-9]+: [0-9A-F]+:1F40 [0-9A-F]+:[0-9A-F]+ 01 " /proc/net/tcp /proc/net/tcp6
}
end=$((SECONDS + {{ $most }})) missed=0
sleep 5
head || exit 0
timeout 30 ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "The pod is going." \
  --deadline-remaining-seconds {{ $most }} > /dev/null 2>&1 || exit 0
while ((SECONDS < end)) && busy; do
  if head; then missed=0; else ((++missed < 5)) || exit 0; fi
  sleep 1
done
{{- end }}
