{{/* Serve's configuration, from the `serve` block: what easel.rayserve.config.serve_config makes of the same settings.
     The tests hold the two against each other. files/defaults.json has the settings' defaults. */}}

{{- define "easel.defaults" -}}{{ .Files.Get "files/defaults.json" }}{{- end }}

{{/* (dict "value" MAP "default" MAP), as JSON: what differs. Arguments that only repeat a default would restart replicas
     when they come and go. */}}
{{- define "easel.pruned" -}}
{{- $out := dict -}}
{{- $default := .default -}}
{{- range $key, $value := .value -}}
{{- $usual := get $default $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $usual) -}}
{{- $part := include "easel.pruned" (dict "value" $value "default" $usual) | fromJson -}}
{{- if $part -}}{{- $_ := set $out $key $part -}}{{- end -}}
{{- else if not (and (hasKey $default $key) (eq (toJson $value) (toJson $usual))) -}}
{{- $_ := set $out $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $out -}}
{{- end }}

{{/* As JSON: key, block and engine of the one model, with every default. */}}
{{- define "easel.model" -}}
{{- $defaults := include "easel.defaults" . | fromJson -}}
{{- $models := dig "app" "models" dict .Values.serve -}}
{{- $key := "default" -}}
{{- range $name, $_ := $models -}}{{- $key = $name -}}{{- end -}}
{{- $block := default dict (get $models $key) -}}
{{- $whole := mustMergeOverwrite (deepCopy $defaults.model) (deepCopy $block) -}}
{{- toJson (dict "key" $key "block" $block "whole" $whole) -}}
{{- end }}

{{/* As JSON: both tiers with every default; the engine's autoscaling too, where there is any. */}}
{{- define "easel.tiers" -}}
{{- $defaults := include "easel.defaults" . | fromJson -}}
{{- $given := default dict .Values.serve.deployments -}}
{{- $ingress := mustMergeOverwrite (deepCopy $defaults.ingress) (deepCopy (default dict $given.ingress)) -}}
{{- $engine := mustMergeOverwrite (deepCopy $defaults.engine) (deepCopy (default dict $given.engine)) -}}
{{- if kindIs "map" $engine.autoscaling -}}
{{- $_ := set $engine "autoscaling" (mustMergeOverwrite (deepCopy $defaults.autoscaling) $engine.autoscaling) -}}
{{- end -}}
{{- toJson (dict "ingress" $ingress "engine" $engine) -}}
{{- end }}

{{/* The application's arguments, as JSON. */}}
{{- define "easel.arguments" -}}
{{- $defaults := include "easel.defaults" . | fromJson -}}
{{- $app := deepCopy (default dict .Values.serve.app) -}}
{{- $model := include "easel.model" . | fromJson -}}
{{- $block := $model.block -}}
{{- with $block.engine -}}
{{- range $defaults.only_live -}}{{- $_ := unset $block.engine . -}}{{- end -}}
{{- end -}}
{{- $block = include "easel.pruned" (dict "value" $block "default" $defaults.model) | fromJson -}}
{{- $_ := unset $app "models" -}}
{{- if include "easel.keysSecret" . -}}
{{- $api := default dict $app.api -}}
{{- $_ := set $api "keys_file" (printf "%s/%s" $defaults.keys_folder .Values.keys.file) -}}
{{- $_ := set $app "api" $api -}}
{{- end -}}
{{- with $app.telemetry -}}{{- $_ := unset . "log_level" -}}{{- end -}}
{{- $app = include "easel.pruned" (dict "value" $app "default" $defaults.app) | fromJson -}}
{{- if or $block (ne $model.key "default") -}}
{{- $_ := set $app "models" (dict $model.key $block) -}}
{{- end -}}
{{- toJson $app -}}
{{- end }}

{{/* Serve's options of a tier laid on what stands in the default configuration: (dict "base" MAP "tier" MAP), as JSON. */}}
{{- define "easel.deployment" -}}
{{- $out := .base -}}
{{- $tier := .tier -}}
{{- range list "max_ongoing_requests" "graceful_shutdown_timeout_s" "health_check_period_s" "health_check_timeout_s" -}}
{{- $_ := set $out . (get $tier .) -}}
{{- end -}}
{{- $_ := set $out "num_replicas" $tier.replicas -}}
{{- $_ := set $out "ray_actor_options" (dict "num_cpus" $tier.cpus "num_gpus" $tier.gpus) -}}
{{- toJson $out -}}
{{- end }}

{{- define "easel.serveConfig" -}}
{{- $defaults := include "easel.defaults" . | fromJson -}}
{{- $config := $defaults.serve -}}
{{- $application := index $config.applications 0 -}}
{{- $tiers := include "easel.tiers" . | fromJson -}}
{{- $model := include "easel.model" . | fromJson -}}
{{- $base := dict -}}
{{- range $application.deployments -}}{{- $_ := set $base .name . -}}{{- end -}}
{{- $ingress := include "easel.deployment" (dict "base" $base.ingress "tier" $tiers.ingress) | fromJson -}}
{{- $engine := include "easel.deployment" (dict "base" $base.engine "tier" $tiers.engine) | fromJson -}}
{{- $limits := dict -}}
{{- range $defaults.live_limits -}}{{- $_ := set $limits . (get $model.whole.engine .) -}}{{- end -}}
{{- $level := dig "app" "telemetry" "log_level" $defaults.app.telemetry.log_level .Values.serve -}}
{{- $_ := set $limits "log_level" $level -}}
{{- $_ := set $engine "user_config" $limits -}}
{{- $_ := set $ingress.user_config "log_level" $level -}}
{{- if kindIs "map" $tiers.engine.autoscaling -}}
{{- $scaling := $tiers.engine.autoscaling -}}
{{- $bounds := pick $scaling "min_replicas" "max_replicas" -}}
{{- $_ := unset $engine "num_replicas" -}}
{{- $_ := set $engine "autoscaling_config" (mustMergeOverwrite $defaults.autoscaling_config $bounds) -}}
{{- $live := dict "targets" (omit $scaling "min_replicas" "max_replicas") "scales_to_zero" (eq (int $scaling.min_replicas) 0) -}}
{{- $_ := set $ingress.user_config "autoscaling" $live -}}
{{- end -}}
{{- $_ := set $application "args" (include "easel.arguments" . | fromJson) -}}
{{- $_ := set $application "deployments" (list $ingress $engine) -}}
{{- $_ := set $config "applications" (list $application) -}}
{{- $_ := set $config.logging_config "log_level" $level -}}
{{- toYaml $config -}}
{{- end }}

{{/* Seconds after which the longest request that was let in is answered. */}}
{{- define "easel.longest" -}}
{{- $defaults := include "easel.defaults" . | fromJson -}}
{{- $request := dig "app" "api" "request_timeout_s" $defaults.app.api.request_timeout_s .Values.serve -}}
{{- $queue := dig "app" "router" "queue_timeout_s" $defaults.app.router.queue_timeout_s .Values.serve -}}
{{- add (int (ceil (float64 $request))) (int (ceil (float64 $queue))) 30 -}}
{{- end }}
