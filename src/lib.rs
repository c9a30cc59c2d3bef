//! finch: a terminal assistant that runs a Qwen model on its user's machine and becomes theirs.

pub mod error;
pub mod model;
