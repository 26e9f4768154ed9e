//! What happens to an installation, one after the other, while mail arrives.

mod away;
mod changes;
mod guide;
mod losses;
mod operators;
mod pauses;
mod releases;
