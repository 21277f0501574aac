{{/* Labels of everything. */}}
{{- define "weft-cni.labels" -}}
linkerd.io/cni-resource: "true"
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* {cpu: {request, limit}, memory: {request, limit}} as Kubernetes has it; nothing when nothing is set. */}}
{{- define "weft-cni.resources" -}}
{{- $cpu := .cpu | default dict }}
{{- $memory := .memory | default dict }}
{{- if or $cpu.limit $memory.limit }}
limits:
  {{- with $cpu.limit }}
  cpu: {{ . | quote }}
  {{- end }}
  {{- with $memory.limit }}
  memory: {{ . | quote }}
  {{- end }}
{{- end }}
{{- if or $cpu.request $memory.request }}
requests:
  {{- with $cpu.request }}
  cpu: {{ . | quote }}
  {{- end }}
  {{- with $memory.request }}
  memory: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}
