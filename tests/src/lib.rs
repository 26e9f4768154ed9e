//! End to end tests of Mailbell on real servers
