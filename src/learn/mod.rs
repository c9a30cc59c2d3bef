//! Learning from feedback: when to train, on what, and whether the result goes live.
//!
//! - `recipe`: every number that decides how a buffer is trained, `auto` resolved
//! - `rows`: examples to token rows, by the model's own template
//! - `mix`: which loss each row is trained with
//! - `variations`: a taught question in other wordings, and questions beside it
//! - `split`: which rows are held out
//! - `canaries`: ordinary prompts and the base's own answers to them, for replay and for the gate
//! - `fit`: rows in, trained weights out; knows neither store nor registry
//! - `dataset`: one training on rows from a file, with an objective of the user's choice
//! - `gauge`: an adapter under measurement; `held_out`, `compliance`: what is measured on rows that it has not seen, and on
//!   what it was taught
//! - `gate`: the measurements that decide whether a new adapter goes live
//! - `publish`: trained weights saved, judged, and made live if they pass
//! - `keep`: a training's entry in the store, its provenance and what the gate is to ask, whatever its rows came from
//! - `round`: one training from the store's buffer to the live adapter, with all bookkeeping
//! - `coordinator`: when rounds run, beside a chat
//!
//! Everything but the coordinator blocks and can be called from anywhere. Nothing here prints.

pub mod canaries;
pub mod compliance;
pub mod coordinator;
pub mod dataset;
pub mod fit;
pub mod gate;
pub mod gauge;
pub mod held_out;
pub mod keep;
pub mod mix;
pub mod publish;
pub mod recipe;
pub mod round;
pub mod rows;
pub mod split;
pub mod variations;

#[cfg(test)]
mod testing;
