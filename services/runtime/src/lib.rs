//! Process scaffolding that every role of Mailbell shares.
//!
//! The order in which a role uses it, which is also the order of its `main`:
//!
//! 1. [`tls::install_crypto_provider`], [`limits::raise_open_files`];
//! 2. [`telemetry::Telemetry::init`];
//! 3. [`listen::bind`] every listener, before any other work, so that a wrong address is one line and an exit code;
//! 4. [`metrics::Metrics`], [`health::Health`], [`http::HttpServer`];
//! 5. the role itself, with a [`drain::DrainHandle`] in each of its tasks;
//! 6. [`signals::Signals`]: the first signal drains, the second one ends at once;
//! 7. [`telemetry::Telemetry::shutdown`], inside the grace period.
//!
//! It knows nothing of mail or NATS, offers no gRPC service, and no other crate of the workspace.

pub mod drain;
mod error;
pub mod exit;
pub mod failpoint;
pub mod health;
pub mod http;
pub mod incoming;
pub mod limits;
pub mod listen;
pub mod metrics;
mod process;
pub mod reload;
pub mod secretfile;
pub mod signals;
pub mod telemetry;
#[cfg(feature = "test-util")]
pub mod test_util;
pub mod tls;
pub mod trace;

pub use error::Error;
pub use exit::ExitCode;
