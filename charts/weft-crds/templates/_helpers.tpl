{{/* Metadata of a definition: (dict "root" $ "plural" "servers" "group" "policy.linkerd.io") */}}
{{- define "weft-crds.metadata" -}}
name: {{ .plural }}.{{ .group }}
annotations:
  linkerd.io/created-by: weft {{ .root.Chart.AppVersion }}
labels:
  linkerd.io/control-plane-ns: {{ .root.Release.Namespace }}
  app.kubernetes.io/part-of: weft
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{/* A reference to an object of the same namespace. */}}
{{- define "weft-crds.localReference" -}}
type: object
required: [kind, name]
properties:
  group: {type: string, maxLength: 253}
  kind: {type: string, minLength: 1, maxLength: 63}
  name: {type: string, minLength: 1, maxLength: 253}
{{- end }}

{{/* A reference to an object, perhaps of another namespace. */}}
{{- define "weft-crds.reference" -}}
{{ include "weft-crds.localReference" . }}
  namespace: {type: string, minLength: 1, maxLength: 253}
{{- end }}

{{- define "weft-crds.labelSelector" -}}
type: object
properties:
  matchLabels:
    type: object
    additionalProperties: {type: string}
  matchExpressions:
    type: array
    items:
      type: object
      required: [key, operator]
      properties:
        key: {type: string}
        operator: {type: string, enum: [In, NotIn, Exists, DoesNotExist]}
        values:
          type: array
          items: {type: string}
{{- end }}

{{/* A list of networks, each with exceptions. */}}
{{- define "weft-crds.networks" -}}
type: array
items:
  type: object
  required: [cidr]
  properties:
    cidr: {type: string, minLength: 1}
    except:
      type: array
      items: {type: string, minLength: 1}
{{- end }}

{{/* What controllers say about routes and policies. */}}
{{- define "weft-crds.conditions" -}}
type: array
items:
  type: object
  required: [type, status, reason, message, lastTransitionTime]
  properties:
    type: {type: string, maxLength: 316}
    status: {type: string, enum: ["True", "False", Unknown]}
    reason: {type: string, maxLength: 1024}
    message: {type: string, maxLength: 32768}
    lastTransitionTime: {type: string, format: date-time}
    observedGeneration: {type: integer, format: int64, minimum: 0}
{{- end }}
