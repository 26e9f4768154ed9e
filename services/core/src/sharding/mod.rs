//! How watchers share the partitions.

pub mod assignment;
