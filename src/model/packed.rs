//! Training rows laid behind each other, without padding: one pass of the network over all of them.

use super::Tokens;
use super::config::ModelConfig;
use crate::error::{Error, Result};

/// Rows laid behind each other, and what is asked of them.
#[derive(Debug, Default)]
pub struct Packed {
    pub ids: Vec<u32>,
    pub positions: Vec<u32>,
    /// Where each row begins and how long it is.
    pub rows: Vec<(usize, usize)>,
    /// Tokens whose hidden state predicts a target, and those targets.
    pub predicting: Vec<u32>,
    pub targets: Vec<u32>,
    /// Number of targets of each row.
    counts: Vec<usize>,
}

impl Packed {
    /// Errors: an id outside the vocabulary; a row without a completion behind its first token.
    pub fn new(config: &ModelConfig, rows: &[&Tokens]) -> Result<Packed> {
        let mut p = Packed::default();
        for row in rows {
            config.check_ids(&row.ids)?;
            if row.targets.len() != row.ids.len() || row.targets[0] || row.target_count() == 0 {
                return Err(Error::failure("a training row needs a completion after its first token"));
            }
            let start = p.ids.len();
            for (i, target) in row.targets.iter().enumerate() {
                if *target {
                    p.predicting.push((start + i - 1) as u32);
                    p.targets.push(row.ids[i]);
                }
            }
            p.rows.push((start, row.ids.len()));
            p.counts.push(row.target_count());
            p.positions.extend(0..row.ids.len() as u32);
            p.ids.extend(&row.ids);
        }
        Ok(p)
    }

    pub fn longest(&self) -> usize {
        self.rows.iter().map(|(_, len)| *len).max().unwrap_or(0)
    }

    /// One value a target → one list a row.
    pub fn split(&self, values: Vec<f32>) -> Vec<Vec<f32>> {
        let mut rest = values.as_slice();
        self.counts
            .iter()
            .map(|n| {
                let (row, more) = rest.split_at(*n);
                rest = more;
                row.to_vec()
            })
            .collect()
    }
}
