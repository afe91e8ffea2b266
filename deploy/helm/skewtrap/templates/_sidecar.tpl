{{/*
The agent as a native sidecar, for the initContainers of your own pod; call it with the context of this chart:
  {{- include "skewtrap.sidecar" .Subcharts.skewtrap | nindent 8 }}
On purpose it has no readiness or startup probe: the agent must never keep the server from serving.
*/}}
{{- define "skewtrap.sidecar" -}}
- name: skewtrap
  image: {{ include "skewtrap.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  restartPolicy: Always
  args: [run, --config, /etc/skewtrap/skewtrap.yaml]
  ports: [{ name: skewtrap, containerPort: 9465 }]
  {{- with .Values.sidecar.env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.sidecar.envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  livenessProbe:
    httpGet: { path: /healthz, port: skewtrap }
    initialDelaySeconds: 30
    periodSeconds: 20
    failureThreshold: 3
  resources:
    {{- toYaml .Values.sidecar.resources | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: { drop: [ALL] }
  volumeMounts:
    - { name: skewtrap-config, mountPath: /etc/skewtrap, readOnly: true }
    {{- if .Values.tokenSecret }}
    - { name: skewtrap-secret, mountPath: /etc/skewtrap-secret, readOnly: true }
    {{- end }}
    # The whole volume: moving a trace into a bundle is then a rename.
    - { name: {{ .Values.sidecar.dataVolume | default "skewtrap-data" }}, mountPath: /data }
{{- end }}

{{/* The volumes of that container. */}}
{{- define "skewtrap.volumes" -}}
- name: skewtrap-config
  configMap: { name: {{ include "skewtrap.name" . }} }
{{- if .Values.tokenSecret }}
- name: skewtrap-secret
  secret: { secretName: {{ .Values.tokenSecret }}, defaultMode: 0440 }
{{- end }}
{{- if not .Values.sidecar.dataVolume }}
- name: skewtrap-data
  emptyDir: { sizeLimit: {{ .Values.sidecar.dataSize }} }
{{- end }}
{{- end }}

{{/* The configuration, with the token where a Secret has one. */}}
{{- define "skewtrap.config" -}}
{{- $token := dict -}}
{{- if .Values.tokenSecret -}}
{{- $token = dict "token" (dict "file" "/etc/skewtrap-secret/token") -}}
{{- end -}}
{{- toYaml (merge (deepCopy .Values.sidecar.config) $token) }}
{{- end }}

{{/* An annotation for your pod: it is made anew when the configuration changes. */}}
{{- define "skewtrap.checksum" -}}
checksum/skewtrap: {{ include "skewtrap.config" . | sha256sum }}
{{- end }}
