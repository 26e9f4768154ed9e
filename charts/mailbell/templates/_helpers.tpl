{{- /* By which the operator's pods are found; they never change. */}}
{{- define "mailbell.selector" -}}
app.kubernetes.io/name: mailbell-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "mailbell.labels" -}}
{{ include "mailbell.selector" . }}
app.kubernetes.io/part-of: mailbell
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "mailbell.name" -}}
{{ printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "mailbell.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "mailbell.name" .) }}
{{- end }}

{{- define "mailbell.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
