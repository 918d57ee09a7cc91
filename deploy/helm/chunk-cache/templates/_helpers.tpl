{{/* Labels of everything. */}}
{{- define "chunk-cache.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* What a container may: nothing beyond its own memory, sockets and volumes. */}}
{{- define "chunk-cache.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* What both kinds of pod have. Takes a dict of root, component and values. */}}
{{- define "chunk-cache.pod" -}}
automountServiceAccountToken: false
# The variables of other services would look like options.
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
# A node that is lost takes one of them along, where there is a choice.
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: { app.kubernetes.io/instance: {{ .root.Release.Name }}, app.kubernetes.io/component: {{ .component }} }
{{- end }}

{{/* Whether TLS is on; one secret without the other is a mistake. */}}
{{- define "chunk-cache.tls" -}}
{{- if ne (empty .Values.tls.coordinatorSecret) (empty .Values.tls.edgeSecret) }}
{{- fail "tls.coordinatorSecret and tls.edgeSecret are given together" }}
{{- end }}
{{- if .Values.tls.coordinatorSecret }}yes{{ end }}
{{- end }}

{{/* Endpoints are told of a pod's end some time after the pod is: it takes connections until then. */}}
{{- define "chunk-cache.lifecycle" -}}
preStop: { exec: { command: ["sleep", "3"] } }
{{- end }}
