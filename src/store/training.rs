//! What a training on a base would see now: the store's feedback through the rules and into the buffer.

use super::{Store, feedback, runs};
use crate::error::Result;
use crate::feedback::example::Unused;
use crate::feedback::{BadAnswer, Buffer, Judged, Waiting, judge_all};

/// The buffer and what stands beside it, all of one moment.
#[derive(Debug, Clone)]
pub struct TrainingSet {
    pub buffer: Buffer,
    /// Examples in the buffer that no completed or refused run on this base has seen: what the threshold counts.
    pub new: usize,
    /// Bad answers that wait for a better one; they hold no place in the buffer.
    pub waiting: Vec<Waiting>,
    /// Those of them that may be moved away from meanwhile.
    pub bad: Vec<BadAnswer>,
    /// Feedback that teaches this base nothing, and why.
    pub unused: Vec<Unused>,
}

impl Store {
    /// The training set for `base` (digest of its weights) with a buffer of `capacity` examples.
    pub fn training_set(&self, base: &str, capacity: usize) -> Result<TrainingSet> {
        let (judged, consumed) =
            self.read(|transaction| Ok((feedback::judged(transaction)?, runs::consumed(transaction, base)?)))?;
        let Judged { examples, waiting, bad, unused } = judge_all(&judged, base);
        let buffer = Buffer::fill(capacity, examples);
        Ok(TrainingSet { new: consumed.count_new(buffer.examples()), buffer, waiting, bad, unused })
    }
}
