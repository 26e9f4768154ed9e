//! The custom resources on a real Kubernetes API server.

#![cfg(test)]
mod actors;
mod admin;
mod all_namespaces;
mod charts;
mod definitions;
mod fake_admin;
mod installation;
mod killed;
mod mail_accounts;
mod mail_providers;
mod operator;
mod pods;
mod requests;
mod rights;
mod sizing;
mod stuck;
mod watched;
mod watches;
mod world;
