//! Fans the log out to device streams
