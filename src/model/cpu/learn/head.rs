//! The output layer: log-probabilities and KL of the targets from their hidden states, and what a hidden state changes in them.
//!
//! A row of Qwen's logits is 0.6 MB: they exist for some targets at a time, and once. What flows back to a hidden state is a
//! multiple of ∂log p(t)/∂h = W[t] − Σ p W, and of ∂KL/∂h = Σ (p − p_base) W, whatever the loss; so both are made while the
//! logits are there.

use super::linear::Linear;
use super::polite::Polite;
use crate::error::Result;
use crate::model::cpu::math::{divergence, log_sum_exp, probabilities};
use crate::model::cpu::matrix::Matrix;
use crate::model::cpu::plane::Plane;
use crate::model::cpu::tiles::Regions;

/// Most logits held at once.
const LOGITS: usize = 1 << 25;

/// Of each target.
pub struct Scored {
    pub logprobs: Vec<f32>,
    /// KL(base ‖ adapted) in nat; empty without a base.
    pub kl: Vec<f32>,
    pub slopes: Option<Slopes>,
}

/// `[targets, hidden]`
pub struct Slopes {
    /// ∂log p(t)/∂h
    pub logprob: Plane,
    /// ∂KL/∂h
    pub kl: Option<Plane>,
}

/// A target's place among the logits.
#[derive(Clone, Copy, Default)]
struct Row {
    logprob: f32,
    kl: f32,
    /// ln Σ eˣ of its logits, and of the base's.
    all: f32,
    all_of_base: f32,
}

impl Polite<'_> {
    /// `hidden`: after the final norm, `[targets, hidden]`; `base`: the base's. Slopes are made where `sloped`.
    pub fn score(
        self,
        head: &Matrix,
        hidden: &Plane,
        base: Option<&Plane>,
        targets: &[u32],
        sloped: bool,
    ) -> Result<Scored> {
        let slopes = || Plane::new(hidden.rows(), hidden.width());
        let mut all = Scored {
            logprobs: Vec::with_capacity(targets.len()),
            kl: Vec::new(),
            slopes: sloped.then(|| Slopes { logprob: slopes(), kl: base.map(|_| slopes()) }),
        };
        let chunks = targets.len().div_ceil((LOGITS / head.rows()).max(1));
        let chunk = targets.len().div_ceil(chunks.max(1)).max(1);
        for (first, targets) in (0..).step_by(chunk).zip(targets.chunks(chunk)) {
            let mut logits = self.logits(head, hidden, first, targets.len())?;
            let mut based = match base {
                Some(base) => self.logits(head, base, first, targets.len())?,
                None => Plane::default(),
            };
            let mut rows = vec![Row::default(); targets.len()];
            self.each(&mut rows, |at, row| {
                let logits = logits.row(at);
                row.all = log_sum_exp(self.level, logits);
                row.logprob = logits[targets[at] as usize] - row.all;
                if base.is_some() {
                    let based = based.row(at);
                    row.all_of_base = log_sum_exp(self.level, based);
                    row.kl = divergence(self.level, (based, row.all_of_base), (logits, row.all));
                }
            })?;
            all.logprobs.extend(rows.iter().map(|row| row.logprob));
            if base.is_some() {
                all.kl.extend(rows.iter().map(|row| row.kl));
            }
            let Some(slopes) = &mut all.slopes else { continue };
            self.rows(&mut logits, |at, p| probabilities(self.level, p, rows[at].all))?;
            if let Some(slope) = &mut slopes.kl {
                self.rows(&mut based, |at, p| {
                    probabilities(self.level, p, rows[at].all_of_base);
                    p.iter_mut().zip(logits.row(at)).for_each(|(base, p)| *base = p - *base);
                })?;
                self.slope(head, &based, first, slope)?;
            }
            self.rows(&mut logits, |at, p| {
                p.iter_mut().for_each(|p| *p = -*p);
                p[targets[at] as usize] += 1.0;
            })?;
            self.slope(head, &logits, first, &mut slopes.logprob)?;
        }
        Ok(all)
    }

    fn logits(self, head: &Matrix, hidden: &Plane, first: usize, len: usize) -> Result<Plane> {
        let mut some = Plane::new(len, hidden.width());
        (0..len).for_each(|row| some.row_mut(row).copy_from_slice(hidden.row(first + row)));
        let mut out = self.plane(len, head.rows());
        let layer = Linear { matrix: head, bias: None, pair: None };
        self.linear([layer], &some, [None], [&mut out], false)?;
        Ok(out)
    }

    fn slope(self, head: &Matrix, d_logits: &Plane, first: usize, out: &mut Plane) -> Result<()> {
        let mut some = Plane::new(d_logits.rows(), out.width());
        self.through(head, d_logits, &mut some)?;
        (0..some.rows()).for_each(|row| out.row_mut(first + row).copy_from_slice(some.row(row)));
        Ok(())
    }
}
