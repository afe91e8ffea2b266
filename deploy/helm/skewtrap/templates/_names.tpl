{{- define "skewtrap.name" -}}
{{ printf "%s-skewtrap" .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "skewtrap.labels" -}}
app.kubernetes.io/name: skewtrap
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "skewtrap.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "skewtrap.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (printf "%s-node" (include "skewtrap.name" .)) "default" .Values.serviceAccount.create) }}
{{- end }}
