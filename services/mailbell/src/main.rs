//! Push e-mail for ordinary IMAP mailboxes.

mod standalone;

fn main() {}
