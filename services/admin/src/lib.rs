//! The API that holds accounts and tokens
