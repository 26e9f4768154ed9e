//! `mailbell standalone`: watcher, gateway and admin in one process, with a NATS server of its own beside it.

pub mod nats_child;
pub mod state_dir;
