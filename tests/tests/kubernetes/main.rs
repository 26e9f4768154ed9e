//! Mailbell on a cluster with nodes and pods, installed as a person installs it. `make e2e` runs these, as root.

#![cfg(test)]

mod balancer;
mod figures;
mod install;
mod load;
mod pods;
mod reader;
mod scenes;
mod subscribers;
mod terminal;
mod world;
