{{/*
The proxies of the control plane itself. The injector cannot add them: it needs an identity first, and so does everything
that it would be injected by. They are what the injector would add; a test compares.
*/}}

{{- define "weft.proxyLabels" -}}
linkerd.io/workload-ns: {{ .root.Release.Namespace }}
linkerd.io/proxy-deployment: weft-{{ .component }}
{{- end }}

{{- define "weft.proxyAnnotations" -}}
{{- /* Proxies ask for their first certificate before they can authenticate, whatever the default of the cluster is. */ -}}
config.linkerd.io/default-inbound-policy: all-unauthenticated
config.linkerd.io/skip-outbound-ports: {{ .root.Values.proxyInit.kubeAPIServerPorts | quote }}
linkerd.io/created-by: weft {{ .root.Chart.AppVersion }}
linkerd.io/proxy-version: {{ include "weft.proxyVersion" .root | quote }}
linkerd.io/trust-root-sha256: {{ .root.Values.identityTrustAnchorsPEM | trim | sha256sum }}
{{- end }}

{{- define "weft.proxyImage" -}}
image: {{ .root.Values.proxy.image.name }}:{{ include "weft.proxyVersion" .root }}
imagePullPolicy: {{ .root.Values.proxy.image.pullPolicy | default .root.Values.imagePullPolicy }}
{{- end }}

{{/* The arguments that say how to redirect; a CNI plugin reads them from the validator. */}}
{{- define "weft.redirection" -}}
{{- $values := .root.Values -}}
- --incoming-proxy-port
- {{ $values.proxy.ports.inbound | quote }}
- --outgoing-proxy-port
- {{ $values.proxy.ports.outbound | quote }}
- --proxy-uid
- {{ $values.proxy.uid | quote }}
{{- if ge (int $values.proxy.gid) 0 }}
- --proxy-gid
- {{ $values.proxy.gid | quote }}
{{- end }}
- --inbound-ports-to-ignore
- {{ printf "%v,%v,%s" $values.proxy.ports.control $values.proxy.ports.admin $values.proxyInit.ignoreInboundPorts | quote }}
- --outbound-ports-to-ignore
- {{ $values.proxyInit.kubeAPIServerPorts | quote }}
{{- with $values.proxyInit.skipSubnets }}
- --subnets-to-ignore
- {{ . | quote }}
{{- end }}
{{- with $values.proxyInit.iptablesMode }}
{{- if ne . "auto" }}
- --iptables-mode
- {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "weft.initContainer" -}}
{{- $values := .root.Values -}}
name: {{ ternary "linkerd-network-validator" "linkerd-init" $values.cniEnabled }}
{{ include "weft.proxyImage" . }}
command: [weft-init]
args:
  {{- if $values.cniEnabled }}
  - validate
  {{- end }}
  {{- include "weft.redirection" . | nindent 2 }}
{{- with include "weft.resources" $values.proxy.resources }}
resources:
  {{- . | nindent 2 }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  {{- if $values.cniEnabled }}
  capabilities:
    drop: [ALL]
  {{- /* What the proxy's own user and group send is not redirected, so it must be somebody else. */}}
  runAsGroup: {{ ternary 65533 65534 (eq (int $values.proxy.gid) 65534) }}
  runAsNonRoot: true
  runAsUser: {{ ternary 65533 65534 (eq (int $values.proxy.uid) 65534) }}
  {{- else }}
  capabilities:
    add: [NET_ADMIN, NET_RAW]
  privileged: false
  runAsGroup: 0
  runAsNonRoot: false
  runAsUser: 0
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* The address of a component as its clients see it; its own pods see it on loopback. */}}
{{- define "weft.proxyService" -}}
- name: LINKERD2_PROXY_{{ .variable }}_SVC_ADDR
  {{- if eq .serves .component }}
  value: "localhost.:{{ .port }}"
  {{- else }}
  value: "{{ .service }}.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}.:{{ .port }}"
  {{- end }}
- name: LINKERD2_PROXY_{{ .variable }}_SVC_NAME
  value: "weft-{{ .serves }}.{{ .root.Release.Namespace }}.serviceaccount.identity.{{ .root.Release.Namespace }}.{{ .root.Values.identityTrustDomain }}"
{{- end }}

{{- define "weft.proxyContainer" -}}
{{- $values := .root.Values -}}
{{- $namespace := .root.Release.Namespace -}}
name: linkerd-proxy
{{ include "weft.proxyImage" . }}
command: [weft-proxy]
env:
  - name: _pod_name
    valueFrom: {fieldRef: {fieldPath: metadata.name}}
  - name: _pod_ns
    valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
  - name: _pod_ip
    valueFrom: {fieldRef: {fieldPath: status.podIP}}
  - name: _pod_nodeName
    valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
  - name: _pod_sa
    valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}
  - name: LINKERD2_PROXY_LOG
    value: {{ $values.proxy.logLevel | quote }}
  - name: LINKERD2_PROXY_LOG_FORMAT
    value: {{ $values.proxy.logFormat | quote }}
  - name: LINKERD2_PROXY_CORES
    value: "1"
  {{- include "weft.proxyService" (dict "root" .root "component" .component "variable" "IDENTITY" "service" "weft-identity" "port" 8080 "serves" "identity") | nindent 2 }}
  {{- include "weft.proxyService" (dict "root" .root "component" .component "variable" "DESTINATION" "service" "weft-destination" "port" 8086 "serves" "destination") | nindent 2 }}
  {{- include "weft.proxyService" (dict "root" .root "component" .component "variable" "POLICY" "service" "weft-policy" "port" 8090 "serves" "destination") | nindent 2 }}
  - name: LINKERD2_PROXY_IDENTITY_LOCAL_NAME
    value: "$(_pod_sa).$(_pod_ns).serviceaccount.identity.{{ $namespace }}.{{ $values.identityTrustDomain }}"
  - name: LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS
    {{- if $values.identity.externalCA }}
    valueFrom:
      configMapKeyRef:
        name: weft-identity-trust-roots
        key: ca-bundle.crt
    {{- else }}
    value: |
      {{- $values.identityTrustAnchorsPEM | trim | nindent 6 }}
    {{- end }}
  - name: LINKERD2_PROXY_IDENTITY_TOKEN_FILE
    value: /var/run/secrets/tokens/linkerd-identity-token
  - name: LINKERD2_PROXY_DESTINATION_CONTEXT
    value: '{"ns":"$(_pod_ns)", "nodeName":"$(_pod_nodeName)", "pod":"$(_pod_name)"}'
  - name: LINKERD2_PROXY_DESTINATION_PROFILE_NETWORKS
    value: {{ $values.clusterNetworks | quote }}
  - name: LINKERD2_PROXY_POLICY_WORKLOAD
    value: '{"ns":"$(_pod_ns)", "pod":"$(_pod_name)"}'
  - name: LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS
    value: {{ $values.clusterNetworks | quote }}
  - name: LINKERD2_PROXY_INBOUND_LISTEN_ADDR
    value: "0.0.0.0:{{ $values.proxy.ports.inbound }}"
  - name: LINKERD2_PROXY_OUTBOUND_LISTEN_ADDR
    value: "127.0.0.1:{{ $values.proxy.ports.outbound }}"
  - name: LINKERD2_PROXY_ADMIN_LISTEN_ADDR
    value: "0.0.0.0:{{ $values.proxy.ports.admin }}"
  - name: LINKERD2_PROXY_INBOUND_IPS
    valueFrom: {fieldRef: {fieldPath: status.podIPs}}
  - name: LINKERD2_PROXY_INBOUND_PORTS
    value: {{ include "weft.inboundPorts" . | quote }}
  - name: LINKERD2_PROXY_INBOUND_DEFAULT_POLICY
    value: all-unauthenticated
  - name: LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION
    value: {{ $values.proxy.opaquePorts | quote }}
  - name: LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT
    value: 100ms
  - name: LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT
    value: 1000ms
  - name: LINKERD2_PROXY_INBOUND_DISCOVERY_IDLE_TIMEOUT
    value: 90s
  - name: LINKERD2_PROXY_OUTBOUND_DISCOVERY_IDLE_TIMEOUT
    value: 5s
  - name: LINKERD2_PROXY_INBOUND_ACCEPT_KEEPALIVE
    value: 10s
  - name: LINKERD2_PROXY_OUTBOUND_CONNECT_KEEPALIVE
    value: 10s
  - name: LINKERD2_PROXY_INBOUND_ACCEPT_USER_TIMEOUT
    value: 30s
  - name: LINKERD2_PROXY_OUTBOUND_CONNECT_USER_TIMEOUT
    value: 30s
  - name: LINKERD2_PROXY_INBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL
    value: 10s
  - name: LINKERD2_PROXY_INBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT
    value: 3s
  - name: LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL
    value: 10s
  - name: LINKERD2_PROXY_OUTBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT
    value: 3s
  - name: LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED
    value: "false"
livenessProbe:
  httpGet:
    path: /live
    port: {{ $values.proxy.ports.admin }}
  initialDelaySeconds: 10
  timeoutSeconds: 1
{{- /* Their own proxies would wait for what waits for them. */}}
{{- if not (or (eq .component "identity") (eq .component "destination")) }}
lifecycle:
  postStart:
    exec:
      command: [weft-proxy, await, --timeout=2m, "--port={{ $values.proxy.ports.admin }}"]
{{- end }}
readinessProbe:
  httpGet:
    path: /ready
    port: {{ $values.proxy.ports.admin }}
  periodSeconds: 2
  timeoutSeconds: 1
ports:
  - name: linkerd-proxy
    containerPort: {{ $values.proxy.ports.inbound }}
  - name: linkerd-admin
    containerPort: {{ $values.proxy.ports.admin }}
{{- with include "weft.resources" $values.proxy.resources }}
resources:
  {{- . | nindent 2 }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: {{ $values.proxy.uid }}
  {{- if ge (int $values.proxy.gid) 0 }}
  runAsGroup: {{ $values.proxy.gid }}
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - name: linkerd-identity-token
    mountPath: /var/run/secrets/tokens
{{- end }}

{{/* The ports of a component in the order of their numbers, as the injector writes them. */}}
{{- define "weft.inboundPorts" -}}
{{- $ports := list -}}
{{- range .ports }}{{ $ports = concat $ports (list (printf "%v" .)) }}{{ end -}}
{{- join "," (concat $ports (list (printf "%v" .adminPort))) -}}
{{- end }}

{{- define "weft.tokenVolume" -}}
name: linkerd-identity-token
projected:
  sources:
    - serviceAccountToken:
        path: linkerd-identity-token
        expirationSeconds: 86400
        audience: identity.l5d.io
{{- end }}
