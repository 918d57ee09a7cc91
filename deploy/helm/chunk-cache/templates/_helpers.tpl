{{/* Labels of everything. */}}
{{- define "chunk-cache.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* An image's reference. Takes a dict of root and image. */}}
{{- define "chunk-cache.image" -}}
{{- with .root.Values.global.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .root.Chart.AppVersion .image.tag }}{{ end }}
{{- end }}

{{/* The least privilege of a container: its own memory, sockets and volumes. */}}
{{- define "chunk-cache.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* Labels and annotations of a pod. Takes a dict of root, component and values. */}}
{{- define "chunk-cache.podMetadata" -}}
labels: {{- include "chunk-cache.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .values.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The part of a pod that both kinds share. Takes a dict of root, component and values. */}}
{{- define "chunk-cache.pod" -}}
automountServiceAccountToken: false
# The variables of other services would look like options.
enableServiceLinks: false
{{- with include "chunk-cache.serviceAccount" .root }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
# A lost node takes one of them along, where there is a choice.
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: { app.kubernetes.io/instance: {{ .root.Release.Name }}, app.kubernetes.io/component: {{ .component }} }
{{- end }}

{{/* The service account's name; empty: the namespace's default. */}}
{{- define "chunk-cache.serviceAccount" -}}
{{- if .Values.serviceAccount.name }}{{ .Values.serviceAccount.name }}
{{- else if .Values.serviceAccount.create }}{{ .Release.Name }}{{ end }}
{{- end }}

{{/* All addresses of a pod; [::] takes IPv4 too, but needs a kernel with IPv6. */}}
{{- define "chunk-cache.any" -}}
{{ ternary "[::]" "0.0.0.0" .Values.ipv6 }}
{{- end }}

{{/* Whether TLS is on; one secret without the other is a mistake. */}}
{{- define "chunk-cache.tls" -}}
{{- if ne (empty .Values.tls.coordinatorSecret) (empty .Values.tls.edgeSecret) }}
{{- fail "tls.coordinatorSecret and tls.edgeSecret are given together" }}
{{- end }}
{{- if .Values.tls.coordinatorSecret }}yes{{ end }}
{{- end }}

{{/* Endpoints learn of a pod's end some time after the pod does: it takes connections until then. */}}
{{- define "chunk-cache.lifecycle" -}}
preStop: { exec: { command: ["sleep", "3"] } }
{{- end }}
