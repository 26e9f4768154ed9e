//! The rules of Mailbell without any I/O: identities, cursors, the account session, delivery
