//! Watches mailboxes and appends what happens to the log
