//! finch: a terminal assistant that runs a Qwen model on its user's machine and becomes theirs.

pub mod adapter;
pub mod cli;
pub mod commands;
pub mod config;
pub mod engine;
pub mod error;
pub mod feedback;
pub mod fsio;
pub mod json;
pub mod jsonl;
pub mod learn;
pub mod model;
pub mod nearest;
pub mod paths;
pub mod repl;
pub mod session;
pub mod store;
pub mod text;
pub mod train;
pub mod words;
