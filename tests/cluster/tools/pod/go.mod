// What runs in pods of the tests' cluster: see ../../README.md.
module mailbell.dev/tests/pod

go 1.24.0
