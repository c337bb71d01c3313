{{/* The labels by which a selector finds the pods of one part; the part is a list: root, name. */}}
{{- define "fedsight.selector" -}}
app.kubernetes.io/name: fedsight
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "fedsight.labels" -}}
{{ include "fedsight.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}

{{- define "fedsight.name" -}}
{{ printf "%s-%s" ((index . 0).Release.Name | trunc 50 | trimSuffix "-") (index . 1) }}
{{- end }}

{{- define "fedsight.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* The part of a pod's specification that server and site have in common. */}}
{{- define "fedsight.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
shareProcessNamespace: true # the pause process takes leave of processes whose parent has ended
terminationGracePeriodSeconds: 30
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  # Without this every start would make the private keys readable to the group, and FedSight refuses
  # such keys.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The part of a container that server and site have in common. */}}
{{- define "fedsight.container" -}}
image: {{ include "fedsight.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
workingDir: /data
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* The probes of a folder; the arguments are a list: root, the folder. */}}
{{- define "fedsight.probes" -}}
startupProbe:
  exec:
    command: [fedsight, health, {{ index . 1 | quote }}]
  periodSeconds: 10
  timeoutSeconds: 20
  failureThreshold: {{ (index . 0).Values.probes.startupFailures }}
livenessProbe:
  exec:
    command: [fedsight, health, {{ index . 1 | quote }}]
  periodSeconds: 30
  timeoutSeconds: 20
  failureThreshold: 3
readinessProbe:
  exec:
    command: [fedsight, health, {{ index . 1 | quote }}, --connected]
  periodSeconds: 30
  timeoutSeconds: 20
  failureThreshold: 2
{{- end }}

{{/* The claim of a part's volume; the argument is its storage. */}}
{{- define "fedsight.claim" -}}
- metadata:
    name: data
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .className }}
    storageClassName: {{ . | quote }}
    {{- end }}
    resources:
      requests:
        storage: {{ .size | quote }}
{{- end }}

{{/* A rule of a NetworkPolicy for who reads metrics; the arguments are a list: the port, from. */}}
{{- define "fedsight.metrics" -}}
- ports:
    - protocol: TCP
      port: {{ index . 0 }}
  {{- with index . 1 }}
  from:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* A rule for connections to addresses; the arguments are a list: the addresses, the port. */}}
{{- define "fedsight.to" -}}
- to:
    {{- range index . 0 }}
    - ipBlock:
        cidr: {{ . | quote }}
    {{- end }}
  ports:
    - protocol: TCP
      port: {{ index . 1 }}
{{- end }}

{{/* A rule for questions to the DNS. */}}
{{- define "fedsight.dns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns.to | nindent 4 }}
  ports:
    - protocol: UDP
      port: {{ .Values.networkPolicy.dns.port }}
    - protocol: TCP
      port: {{ .Values.networkPolicy.dns.port }}
{{- end }}
