//! Training: rows in, a better parameter vector out.
//!
//! - `chat`: conversations as token sequences
//! - `data`: data sets, file to rows; `order`: which of them a step takes, which are held out
//! - `row`: what is learned from, and each row's loss as a function of token log-probabilities
//! - `schedule`, `optimizer`: learning rate, AdamW, clipping, all over one flat vector
//! - `lanes`: rows through the network on several cores, sums in a fixed order
//! - `run`: the loop, one page, from the first batch to the last step
//!
//! Nothing here knows which network it trains, nor whether the parameters are an adapter's or all.

pub mod chat;
pub mod data;
pub mod lanes;
pub mod optimizer;
pub mod order;
pub mod row;
pub mod run;
pub mod schedule;
