//! The chat's screen: lines in, effects and text out.
//!
//! What a line means ([`command`]), what is said about it ([`render`]) and what is to be done are decided purely; the
//! terminal is touched by [`input`] alone.

pub mod answer;
pub mod command;
pub mod complete;
pub mod decide;
pub mod help;
pub mod input;
pub mod printer;
pub mod render;
pub mod render_training;
pub mod terminal;
