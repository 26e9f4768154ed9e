//! Mailbell on NATS: logs, state, claims, requests to an owner
