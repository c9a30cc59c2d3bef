//! The rules of feedback, pure: which signal means what, what it may teach, and which examples wait for a training.
//!
//! Nothing here reads a disk or a clock. The way of a signal: a [`Kind`] gives value and weight; the store keeps it as
//! [`Feedback`] on an [`Interaction`]; [`judge_all`] turns what is in force into [`Example`]s for one base model; the
//! [`Buffer`] holds at most its capacity of them and draws rows by weight. The buffer is never stored: it is computed
//! anew from the store, so it cannot disagree with it and survives whatever the store survives.

pub mod buffer;
pub mod example;
pub mod exchange;
pub mod kind;
pub mod lesson;
pub mod record;
pub mod revision;
pub mod rule;

pub use buffer::Buffer;
pub use example::{BadAnswer, Example, Judged, Verdict, Waiting, judge, judge_all};
pub use kind::{FeedbackConfig, Kind, Stars};
pub use lesson::Lesson;
pub use record::{Feedback, Finish, Interaction, NewFeedback, NewInteraction, Source};
