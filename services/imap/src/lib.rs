//! The IMAP adapter: a guarded connection, its commands, parsed answers
