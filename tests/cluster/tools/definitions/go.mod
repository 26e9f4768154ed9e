// Modules of which the tests take definitions of others' custom resources, and no code: see ../../README.md. `go mod tidy` would drop them.
module mailbell.dev/tests/definitions

go 1.26.0

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
	sigs.k8s.io/gateway-api v1.6.1
)
