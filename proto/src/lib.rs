//! The wire contracts of Mailbell: push, admin and the internal bus
