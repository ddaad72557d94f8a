{{- define "redis-proxy.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "redis-proxy.fullname" -}}
{{- $name := include "redis-proxy.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "redis-proxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "redis-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "redis-proxy.labels" -}}
{{ include "redis-proxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "redis-proxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "redis-proxy.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "redis-proxy.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* The address of a listener: in a sidecar only the pod reaches it. */}}
{{- define "redis-proxy.address" -}}
{{- if eq .Values.mode "sidecar" -}}127.0.0.1{{- else -}}0.0.0.0{{- end -}}
{{- end -}}

{{/* redis-proxy.toml. JSON texts, numbers, booleans and lists of texts are TOML, too. */}}
{{- define "redis-proxy.toml" -}}
{{- range $section, $keys := .Values.config }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key }} = {{ toRawJson $value }}
{{- end }}
{{ end }}
{{- end -}}

{{/* The variable of a key: REDIS_PROXY_CACHE__TTL for cache.ttl. */}}
{{- define "redis-proxy.variable" -}}
REDIS_PROXY_{{ . | replace "." "__" | upper }}
{{- end -}}

{{- define "redis-proxy.container" -}}
{{- $address := include "redis-proxy.address" . -}}
name: redis-proxy
image: {{ include "redis-proxy.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- if eq .Values.mode "sidecar" }}
restartPolicy: Always
{{- end }}
args: ["--config", "/etc/redis-proxy/redis-proxy.toml"]
env:
  - {name: REDIS_PROXY_HTTP__LISTEN, value: "{{ $address }}:{{ .Values.http.port }}"}
  - {name: REDIS_PROXY_HTTP__ALLOW_UNPROTECTED, value: {{ .Values.http.allowUnprotected | quote }}}
  - {name: REDIS_PROXY_RESP__LISTEN, value: {{ ternary (printf "%s:%v" $address .Values.resp.port) "" .Values.resp.enabled | quote }}}
  - {name: REDIS_PROXY_RESP__ALLOW_UNPROTECTED, value: {{ .Values.resp.allowUnprotected | quote }}}
  # Probes and Prometheus come from outside of the pod.
  - {name: REDIS_PROXY_ADMIN__LISTEN, value: "0.0.0.0:{{ .Values.admin.port }}"}
  - {name: REDIS_PROXY_ADMIN__ALLOW_UNPROTECTED, value: "true"}
  {{- range .Values.secretFiles }}
  - {name: {{ include "redis-proxy.variable" .key }}, value: /run/secrets/redis-proxy/{{ .key }}}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
ports:
  {{- if eq .Values.mode "deployment" }}
  - {name: http, containerPort: {{ .Values.http.port }}}
  {{- if .Values.resp.enabled }}
  - {name: redis, containerPort: {{ .Values.resp.port }}}
  {{- end }}
  {{- end }}
  - {name: admin, containerPort: {{ .Values.admin.port }}}
startupProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 1
  failureThreshold: 30
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 5
  timeoutSeconds: 3
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- if eq .Values.mode "deployment" }}
lifecycle:
  preStop:
    sleep: {seconds: {{ .Values.preStopSeconds }}}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- include "redis-proxy.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: config, mountPath: /etc/redis-proxy, readOnly: true}
  {{- if .Values.secretFiles }}
  - {name: secrets, mountPath: /run/secrets/redis-proxy, readOnly: true}
  {{- end }}
{{- end -}}

{{- define "redis-proxy.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Sends SIGHUP to the proxy of the pod after the mounted file has changed. Kubernetes replaces the
link ..data when it does. */}}
{{- define "redis-proxy.reloader" -}}
name: reloader
image: {{ .Values.reload.image | quote }}
restartPolicy: Always
command:
  - sh
  - -c
  - |
    trap 'exit 0' TERM
    now() { readlink /etc/redis-proxy/..data; }
    seen=$(now)
    while :; do
      sleep {{ .Values.reload.intervalSeconds }} & wait $!
      [ "$(now)" != "$seen" ] || continue
      pid=$(pidof redis-proxy) && kill -HUP "$pid" && seen=$(now) && echo "SIGHUP sent to $pid"
    done
resources:
  requests: {cpu: 5m, memory: 8Mi}
  limits: {memory: 32Mi}
securityContext:
  {{- include "redis-proxy.containerSecurity" . | nindent 2 }}
volumeMounts:
  - {name: config, mountPath: /etc/redis-proxy, readOnly: true}
{{- end -}}
