{{/* Names and labels. docs/chart.md lists them: `easel kube`, alerts and dashboards go by them. */}}

{{- define "easel.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name -}}
{{- end -}}
{{- end }}

{{/* What finds the release's objects and pods, whatever they are. */}}
{{- define "easel.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/part-of: easel
{{- end }}

{{/* Of an object: (dict "root" $ "component" NAME). */}}
{{- define "easel.labels" -}}
app.kubernetes.io/name: easel
{{ include "easel.selector" .root }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Name of an object: (dict "root" $ "suffix" SUFFIX). 63 characters at most, which is what a Job may have; the release's
     own part gives way. */}}
{{- define "easel.named" -}}
{{- $full := include "easel.fullname" .root -}}
{{- if .suffix -}}
{{- $room := int (sub 62 (len .suffix)) -}}
{{- printf "%s-%s" ($full | trunc $room | trimSuffix "-") .suffix -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end }}

{{/* metadata of an object: (dict "root" $ "component" NAME "suffix" SUFFIX). */}}
{{- define "easel.metadata" -}}
name: {{ include "easel.named" . }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "easel.labels" . | nindent 2 }}
{{- end }}

{{/* (dict "root" $ "image" BLOCK): the image, or the chart's where the block names none. */}}
{{- define "easel.image" -}}
{{- $image := .root.Values.image -}}
{{- if .image.repository -}}{{- $image = .image -}}{{- end -}}
{{- $registry := default .root.Values.image.registry $image.registry -}}
{{- with $registry -}}{{ . }}/{{- end -}}
{{- $image.repository -}}
{{- if $image.digest -}}@{{ $image.digest }}{{- else -}}:{{ default .root.Chart.AppVersion $image.tag }}{{- end -}}
{{- end }}

{{- define "easel.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "easel.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{/* Of the head: KubeRay gives it what the autoscaler needs, so it is not the workers'. */}}
{{- define "easel.headServiceAccountName" -}}
{{- include "easel.serviceAccountName" . }}{{ if .Values.serviceAccount.create }}-head{{ end -}}
{{- end }}

{{/* Groups of workers with every default, as JSON. Helm lays no defaults under a group that it does not know. */}}
{{- define "easel.groups" -}}
{{- $default := (.Files.Get "files/defaults.json" | fromJson).group -}}
{{- $groups := dict -}}
{{- range $name, $group := .Values.workers -}}
{{- if kindIs "map" $group -}}
{{- $_ := set $groups $name (mustMergeOverwrite (deepCopy $default) (deepCopy $group)) -}}
{{- end -}}
{{- end -}}
{{- toJson $groups -}}
{{- end }}

{{- define "easel.keysSecret" -}}
{{- if .Values.keys.existingSecret -}}
{{- .Values.keys.existingSecret -}}
{{- else if or .Values.keys.entries .Values.keys.externalSecret.enabled -}}
{{- include "easel.fullname" . }}-keys
{{- end -}}
{{- end }}

{{- define "easel.claim" -}}
{{- default (printf "%s-models" (include "easel.fullname" .)) .Values.modelCache.claim.existing -}}
{{- end }}

{{- define "easel.priorityClassName" -}}
{{- if .Values.priorityClass.create -}}
{{- default (include "easel.fullname" .) .Values.priorityClass.name -}}
{{- else -}}
{{- .Values.priorityClass.name -}}
{{- end -}}
{{- end }}

{{/* "true" where there is a cluster to ask. Every API server aggregates APIs; what Helm assumes without one does not. */}}
{{- define "easel.cluster" -}}
{{- if .Capabilities.APIVersions.Has "apiregistration.k8s.io/v1" -}}true{{- end -}}
{{- end }}

{{/* "true" where an optional kind is to be made: (dict "root" $ "switch" VALUE "api" GROUP/VERSION/KIND). */}}
{{- define "easel.wanted" -}}
{{- if kindIs "bool" .switch -}}
{{- if .switch -}}true{{- end -}}
{{- else if .root.Capabilities.APIVersions.Has .api -}}true{{- end -}}
{{- end }}

{{- define "easel.autoscaled" -}}
{{- if kindIs "bool" .Values.autoscaler.enabled -}}
{{- if .Values.autoscaler.enabled -}}true{{- end -}}
{{- else -}}
{{- $room := false -}}
{{- range (include "easel.groups" . | fromJson) -}}{{- if lt (int .minReplicas) (int .maxReplicas) -}}{{- $room = true -}}{{- end -}}{{- end -}}
{{- if $room -}}true{{- end -}}
{{- end -}}
{{- end }}
