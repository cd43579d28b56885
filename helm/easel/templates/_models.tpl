{{- define "easel.modelVolume" -}}
{{- $cache := .Values.modelCache -}}
- name: models
  {{- if eq $cache.kind "claim" }}
  persistentVolumeClaim:
    claimName: {{ include "easel.claim" . }}
  {{- else if eq $cache.kind "hostPath" }}
  hostPath:
    path: {{ $cache.hostPath }}
    # The kubelet would make it root's, and nothing here runs as root.
    type: Directory
  {{- else }}
  emptyDir:
    sizeLimit: {{ $cache.ephemeralSize }}
  {{- end }}
{{- end }}

{{/* What is to be downloaded, as JSON for files/download.py. */}}
{{- define "easel.wanted.model" -}}
{{- $cache := .Values.modelCache -}}
{{- $download := $cache.download -}}
{{- toJson (dict "repository" $download.repository "revision" $download.revision "files" $download.files "sha256" $download.sha256 "folder" (printf "%s/%s" $cache.mountPath $download.folder)) -}}
{{- end }}

{{/* The rest of a container that downloads, or waits until another has: (dict "root" $ "image" IMAGE "wait" BOOL). */}}
{{- define "easel.download" -}}
{{- $download := .root.Values.modelCache.download -}}
image: {{ .image }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [python, /etc/easel/scripts/download.py{{ if .wait }}, --wait{{ end }}]
env:
  - {name: HOME, value: /tmp}
  - {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
  - {name: HF_HUB_DISABLE_PROGRESS_BARS, value: "1"}
  - name: EASEL_DOWNLOAD
    value: {{ include "easel.wanted.model" .root | quote }}
  {{- if not .wait }}
  {{- with $download.endpoint }}
  - {name: HF_ENDPOINT, value: {{ . | quote }}}
  {{- end }}
  {{- if $download.token.secretName }}
  - name: HF_TOKEN
    valueFrom:
      secretKeyRef: {name: {{ $download.token.secretName }}, key: {{ $download.token.key }}}
  {{- end }}
  {{- with $download.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- end }}
resources:
  requests: {cpu: {{ ternary "50m" $download.cpu .wait | quote }}, memory: {{ ternary "64Mi" $download.memory .wait }}}
  limits: {memory: {{ ternary "256Mi" $download.memory .wait }}}
securityContext:
  {{- toYaml .root.Values.securityContext | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: scripts, mountPath: /etc/easel/scripts, readOnly: true}
  - {name: models, mountPath: {{ .root.Values.modelCache.mountPath }}{{ if .wait }}, readOnly: true{{ end }}}
{{- end }}

{{/* Template of the pods of the download's Job. */}}
{{- define "easel.downloadPod" -}}
metadata:
  labels:
    {{- include "easel.selector" . | nindent 4 }}
    app.kubernetes.io/component: cache
spec:
  restartPolicy: OnFailure
  serviceAccountName: {{ include "easel.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  containers:
    - name: download
      {{- include "easel.download" (dict "root" . "image" (include "easel.image" (dict "root" . "image" .Values.image)) "wait" false) | nindent 6 }}
  volumes:
    - name: tmp
      emptyDir: {}
    - name: scripts
      configMap:
        name: {{ include "easel.fullname" . }}-scripts
    {{- include "easel.modelVolume" . | nindent 4 }}
{{- end }}
