//! Process scaffolding that every role shares: telemetry, health, drain, signals, TLS
