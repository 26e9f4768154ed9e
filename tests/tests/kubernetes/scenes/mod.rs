//! What happens to an installation, one after the other, while mail arrives.

mod away;
mod changes;
mod losses;
mod releases;
