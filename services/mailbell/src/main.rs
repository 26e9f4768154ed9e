//! Push e-mail for ordinary IMAP mailboxes.

use std::process::ExitCode;

fn main() -> ExitCode {
    mailbell::main()
}
