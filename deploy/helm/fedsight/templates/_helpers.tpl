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

{{/* The probes of a folder; the arguments are a list: the folder, an option of the readiness. */}}
{{- define "fedsight.probes" -}}
startupProbe:
  exec:
    command: [fedsight, health, {{ index . 0 | quote }}]
  periodSeconds: 10
  timeoutSeconds: 20
  failureThreshold: 60
livenessProbe:
  exec:
    command: [fedsight, health, {{ index . 0 | quote }}]
  periodSeconds: 30
  timeoutSeconds: 20
  failureThreshold: 3
readinessProbe:
  exec:
    command: [fedsight, health, {{ index . 0 | quote }}, --connected]
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
