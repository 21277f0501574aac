{{/* Labels of everything. The first tells `weft uninstall` and `weft prune` what belongs to this control plane. */}}
{{- define "weft.labels" -}}
linkerd.io/control-plane-ns: {{ .Release.Namespace }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The same, and the component: (dict "root" $ "component" "identity") */}}
{{- define "weft.componentLabels" -}}
{{ include "weft.labels" .root }}
linkerd.io/control-plane-component: {{ .component }}
{{- end }}

{{- define "weft.controllerImage" -}}
{{ .Values.controllerImage }}:{{ .Values.controllerImageVersion | default .Chart.AppVersion }}
{{- end }}

{{- define "weft.proxyVersion" -}}
{{ .Values.proxy.image.version | default .Chart.AppVersion }}
{{- end }}

{{/* {cpu: {request, limit}, memory: {request, limit}} as Kubernetes has it; nothing when nothing is set. */}}
{{- define "weft.resources" -}}
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

{{/*
A Service: (dict "root" $ "name" … "component" … "port" … "targetPort" … "portName" … "headless" bool)
Proxies balance over the pods of a headless one themselves.
*/}}
{{- define "weft.service" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "weft.componentLabels" . | nindent 4 }}
spec:
  {{- if .headless }}
  clusterIP: None
  {{- end }}
  type: ClusterIP
  selector:
    linkerd.io/control-plane-component: {{ .component }}
  ports:
    - name: {{ .portName }}
      port: {{ .port }}
      targetPort: {{ .targetPort | default .port }}
      protocol: TCP
{{- end }}

{{/*
The Deployment of a component with its proxy, its ServiceAccount, and its PodDisruptionBudget:
(dict "root" $ "component" "identity" "replicas" 1 "ports" (dict "grpc" 8080) "adminPort" 9990
      "args" (list …) "resources" {…} "volumes" (list …) "mounts" (list …))
*/}}
{{- define "weft.component" -}}
{{- $values := .root.Values }}
{{- $name := printf "weft-%s" .component }}
{{- $proxy := dict "root" .root "component" .component "ports" .ports "adminPort" .adminPort }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "weft.componentLabels" . | nindent 4 }}
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "weft.componentLabels" . | nindent 4 }}
  annotations:
    linkerd.io/created-by: weft {{ .root.Chart.AppVersion }}
spec:
  replicas: {{ .replicas }}
  revisionHistoryLimit: {{ $values.revisionHistoryLimit }}
  selector:
    matchLabels:
      linkerd.io/control-plane-component: {{ .component }}
      linkerd.io/control-plane-ns: {{ .root.Release.Namespace }}
  strategy:
    {{- toYaml $values.deploymentStrategy | nindent 4 }}
  template:
    metadata:
      labels:
        {{- include "weft.componentLabels" . | nindent 8 }}
        {{- include "weft.proxyLabels" $proxy | nindent 8 }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        {{- include "weft.proxyAnnotations" $proxy | nindent 8 }}
        cluster-autoscaler.kubernetes.io/safe-to-evict: "true"
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ $name }}
      # The application gets the token of the API, its proxy does not.
      automountServiceAccountToken: false
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if $values.enablePodAntiAffinity }}
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm:
                labelSelector:
                  matchLabels:
                    linkerd.io/control-plane-component: {{ .component }}
                topologyKey: topology.kubernetes.io/zone
          requiredDuringSchedulingIgnoredDuringExecution:
            - labelSelector:
                matchLabels:
                  linkerd.io/control-plane-component: {{ .component }}
              topologyKey: kubernetes.io/hostname
      {{- end }}
      securityContext:
        seccompProfile:
          type: RuntimeDefault
      initContainers:
        - {{- include "weft.initContainer" $proxy | nindent 10 }}
      containers:
        - {{- include "weft.proxyContainer" $proxy | nindent 10 }}
        - name: {{ .component }}
          image: {{ include "weft.controllerImage" .root }}
          imagePullPolicy: {{ $values.imagePullPolicy }}
          command: [weft-controller]
          args:
            - {{ .component }}
            - --log-level={{ $values.controllerLogLevel }}
            - --log-format={{ $values.controllerLogFormat }}
            - --controller-namespace={{ .root.Release.Namespace }}
            - --trust-domain={{ $values.identityTrustDomain }}
            {{- range .args }}
            - {{ . }}
            {{- end }}
          ports:
            {{- range $port, $number := .ports }}
            - name: {{ $port }}
              containerPort: {{ $number }}
            {{- end }}
            - name: admin-http
              containerPort: {{ .adminPort }}
          livenessProbe:
            httpGet:
              path: /live
              port: admin-http
            initialDelaySeconds: 10
          readinessProbe:
            httpGet:
              path: /ready
              port: admin-http
            periodSeconds: 2
            failureThreshold: 7
          {{- with include "weft.resources" .resources }}
          resources:
            {{- . | nindent 12 }}
          {{- end }}
          securityContext:
            allowPrivilegeEscalation: false
            capabilities:
              drop: [ALL]
            readOnlyRootFilesystem: true
            runAsNonRoot: true
            runAsUser: {{ $values.controllerUID }}
            runAsGroup: {{ $values.controllerGID }}
            seccompProfile:
              type: RuntimeDefault
          terminationMessagePolicy: FallbackToLogsOnError
          volumeMounts:
            - name: kube-api-access
              mountPath: /var/run/secrets/kubernetes.io/serviceaccount
              readOnly: true
            {{- with .mounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: kube-api-access
          projected:
            sources:
              - serviceAccountToken:
                  path: token
                  expirationSeconds: 3607
              - configMap:
                  name: kube-root-ca.crt
                  items:
                    - key: ca.crt
                      path: ca.crt
              - downwardAPI:
                  items:
                    - path: namespace
                      fieldRef:
                        fieldPath: metadata.namespace
        {{- with .volumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        - {{- include "weft.tokenVolume" . | nindent 10 }}
{{- if $values.enablePodDisruptionBudget }}
---
apiVersion: {{ ternary "policy/v1" "policy/v1beta1" (.root.Capabilities.APIVersions.Has "policy/v1") }}
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "weft.componentLabels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      linkerd.io/control-plane-component: {{ .component }}
{{- end }}
{{- end }}
