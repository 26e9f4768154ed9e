//! The Rust client of Mailbell: a typed stream of mail events without holes or repeats
