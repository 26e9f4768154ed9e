//! The custom resources on a real Kubernetes API server.

#![cfg(test)]
mod actors;
mod charts;
mod definitions;
mod installation;
mod operator;
mod requests;
mod world;
