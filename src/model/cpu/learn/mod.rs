//! Learning on the packed weights: forward and backward by hand, over the one copy that the chat reads.
//!
//! - `polite`: regions that the chat can interrupt
//! - `linear`, `back`: linear layers with their pairs, forward and backward
//! - `attention`, `head`: the two that never hold all they compute; `strips`: products of the former
//! - `block`: a block of them, forward and backward
//! - `adapter`: the parameters
//! - `pass`: all blocks
//! - `stash`: memory between passes
//!
//! Products are of panels of W that are widened where they are used, and keep every bit in a small network. In others they
//! are of sixteen-bit numbers where the processor has an instruction for them (`panel/words`), which is nearer to f32 than
//! its common substitutes, and 1.4 times as fast. Tasks and the order of sums depend on the shapes alone.

mod adapter;
mod attention;
mod back;
mod block;
mod head;
mod linear;
mod pass;
mod polite;
mod stash;
mod strips;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use adapter::Adapter;
use block::Course;
use pass::{CpuPass, Keep};
use polite::Polite;
pub use stash::Stash;
pub use strips::Strips;

use super::Shared;
use super::plane::Plane;
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::courtesy::Courtesy;
use crate::model::dropout::Dropout;
use crate::model::lora::LoraWeights;
use crate::model::memory;
use crate::model::packed::Packed;
use crate::model::{Learner, Pass, PassOptions, Tokens};

/// Learns the pairs of an adapter over frozen weights.
pub(super) struct CpuLearner {
    shared: Arc<Shared>,
    courtesy: Arc<Courtesy>,
    adapter: Adapter,
    /// Between the passes, of a network that is not small.
    stash: Arc<Stash>,
    /// Tokens and targets of the pass that filled it: another's rooms have other sizes.
    stashed: Mutex<(usize, usize)>,
    /// A small network's passes run side by side, and their memory is soon touched: they have none.
    stashes: bool,
    /// Products are of sixteen-bit numbers: where they are faster, and not every bit counts.
    words: bool,
    /// What is kept whatever the memory.
    #[cfg(test)]
    pub keep: Option<Keep>,
}

/// Bytes that a pass over so many tokens keeps for its backward.
pub(super) fn kept_bytes(config: &ModelConfig, tokens: usize) -> u64 {
    4 * (tokens * config.layers * block::kept_numbers(config)) as u64
}

impl CpuLearner {
    pub fn new(shared: Arc<Shared>, layout: &LoraWeights, courtesy: Arc<Courtesy>) -> CpuLearner {
        let (adapter, stashes) = (Adapter::new(&shared, layout), !shared.config.is_small());
        let words = shared.level.words() && !shared.exact;
        CpuLearner {
            shared,
            courtesy,
            adapter,
            stash: Arc::default(),
            stashed: Mutex::default(),
            stashes,
            words,
            #[cfg(test)]
            keep: None,
        }
    }

    /// The rows over the base alone.
    fn course(&self, rows: &[&Tokens]) -> Result<Course<'_>> {
        let Shared { config, turns, pool, level, weights, .. } = &*self.shared;
        weights.unchanged()?;
        let packed = Packed::new(config, rows)?;
        let pairs = turns.frequencies.len();
        let (mut cos, mut sin) = (Plane::new(packed.ids.len(), pairs), Plane::new(packed.ids.len(), pairs));
        for (token, position) in packed.positions.iter().enumerate() {
            turns.of(*position as usize, cos.row_mut(token), sin.row_mut(token));
        }
        let stash = self.stashes.then_some(&self.stash);
        let size = (packed.ids.len(), packed.targets.len());
        if std::mem::replace(&mut *self.stashed.lock().unwrap_or_else(PoisonError::into_inner), size) != size {
            self.stash.clear();
        }
        let on = Polite { pool, level: *level, courtesy: &self.courtesy, stash, words: self.words };
        Ok(Course { on, shared: &self.shared, adapter: None, dropout: None, packed, cos, sin })
    }

    /// All that the backward takes, where half of the memory that is free has room for it.
    fn keep(&self, tokens: usize) -> Keep {
        #[cfg(test)]
        if let Some(keep) = self.keep {
            return keep;
        }
        let bytes = kept_bytes(&self.shared.config, tokens);
        let free = memory::free().map(|free| free.saturating_sub(self.shared.weights.in_files()));
        if free.is_none_or(|free| bytes <= (free + self.stash.bytes()) / 2) { Keep::All } else { Keep::Inputs }
    }
}

impl Learner for CpuLearner {
    fn len(&self) -> usize {
        self.adapter.len()
    }

    fn load(&mut self, params: &[f32]) -> Result<()> {
        self.adapter.load(&self.shared, params)
    }

    fn forward<'a>(&'a self, rows: &[&Tokens], options: PassOptions) -> Result<Box<dyn Pass + 'a>> {
        let mut course = self.course(rows)?;
        let base = options.kl.then(|| course.hidden()).transpose()?;
        course.adapter = Some(&self.adapter);
        course.dropout = Dropout::of(&options);
        let keep = self.keep(course.packed.ids.len());
        Ok(Box::new(CpuPass::new(course, base, keep)?))
    }

    fn reference(&self, rows: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
        let course = self.course(rows)?;
        let scored = course.score(&course.hidden()?, None, false)?;
        Ok(course.packed.split(scored.logprobs))
    }
}
