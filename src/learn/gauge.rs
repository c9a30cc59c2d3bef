//! One adapter under measurement, or the base alone: how likely it finds texts, and what it answers.

use std::sync::Arc;

use super::canaries::greedy;
use crate::error::Result;
use crate::model::courtesy::Courtesy;
use crate::model::lora::LoraWeights;
use crate::model::{Learner, Network, Tokens};
use crate::train::lanes::Lanes;
use crate::train::row::Row;

/// Reads likelihoods and answers; gives way to the chat.
pub struct Gauge<'a> {
    network: &'a dyn Network,
    /// `None`: the base alone.
    adapter: Option<&'a LoraWeights>,
    learner: Box<dyn Learner>,
    lanes: &'a Lanes,
    courtesy: &'a Arc<Courtesy>,
}

impl<'a> Gauge<'a> {
    /// Of `adapter`; without one, of the base. `layout` is any adapter that fits the network.
    pub fn new(
        network: &'a dyn Network,
        adapter: Option<&'a LoraWeights>,
        layout: &LoraWeights,
        lanes: &'a Lanes,
        courtesy: &'a Arc<Courtesy>,
    ) -> Result<Gauge<'a>> {
        let learner = match adapter {
            Some(adapter) => network.learner(adapter, Arc::clone(courtesy))?,
            // An adapter of zeros adds nothing.
            None => {
                let zeros = LoraWeights { data: vec![0.0; layout.data.len()], ..layout.clone() };
                network.learner(&zeros, Arc::clone(courtesy))?
            }
        };
        Ok(Gauge { network, adapter, learner, lanes, courtesy })
    }

    /// Mean −log p of a target token, row by row.
    pub fn surprise(&self, rows: &[&Tokens]) -> Result<Vec<f64>> {
        let rows: Vec<Row> = rows.iter().map(|tokens| Row::imitate((*tokens).clone(), 1.0)).collect();
        self.lanes.losses(self.learner.as_ref(), &rows.iter().collect::<Vec<_>>())
    }

    /// Mean KL(base ‖ adapter) of a target token, row by row.
    pub fn divergence(&self, rows: &[Tokens]) -> Result<Vec<f64>> {
        let rows: Vec<Row> = rows.iter().map(|tokens| Row::stay(tokens.clone(), 1.0)).collect();
        self.lanes.losses(self.learner.as_ref(), &rows.iter().collect::<Vec<_>>())
    }

    /// The greedy answer and the id that ended it; `None`: it was cut off after `max_tokens`.
    pub fn answer(&self, prompt: &[u32], max_tokens: usize, ends: &[u32]) -> Result<(Vec<u32>, Option<u32>)> {
        let mut decoder = self.network.decoder(self.adapter)?;
        greedy(decoder.as_mut(), prompt, max_tokens, ends, self.courtesy)
    }
}
