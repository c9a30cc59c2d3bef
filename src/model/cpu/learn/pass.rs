//! All blocks, forward and backward.

use super::block::{Course, Kept};
use super::head::{Scored, Slopes};
use crate::error::{Error, Result};
use crate::model::Pass;
use crate::model::cpu::math::rms_back;
use crate::model::cpu::plane::Plane;

/// What waits for the backward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    /// What [`Kept`] names.
    All,
    /// The inputs of the blocks, which are computed again one at a time.
    Inputs,
}

/// A block's forward.
struct Stage {
    layer: usize,
    /// `[tokens, hidden]`
    input: Plane,
    kept: Option<Kept>,
}

impl Course<'_> {
    /// Hidden states that predict the targets, after the final norm, `[targets, hidden]`.
    pub fn hidden(&self) -> Result<Plane> {
        let mut x = self.embed()?;
        for layer in 0..self.shared.config.layers {
            self.forward(layer, &mut x)?;
        }
        self.normalised(&x, &self.shared.weights.norm)
    }

    /// `sloped`: for a backward.
    pub fn score(&self, hidden: &Plane, base: Option<&Plane>, sloped: bool) -> Result<Scored> {
        self.on.score(self.shared.weights.head().matrix, hidden, base, &self.packed.targets, sloped)
    }
}

/// A forward that waits for its gradients.
pub struct CpuPass<'a> {
    course: Course<'a>,
    /// Of the blocks from the lowest that learns, in their order.
    stages: Vec<Stage>,
    /// Before the final norm, `[targets, hidden]`.
    last: Plane,
    slopes: Option<Slopes>,
    logprobs: Vec<Vec<f32>>,
    kl: Vec<Vec<f32>>,
}

impl<'a> CpuPass<'a> {
    /// `base`: hidden states of the base at the targets, where the KL to it is asked for.
    pub fn new(course: Course<'a>, base: Option<Plane>, keep: Keep) -> Result<CpuPass<'a>> {
        let (layers, lowest) = (course.shared.config.layers, course.adapter.and_then(|adapter| adapter.lowest()));
        let (mut x, mut stages) = (course.embed()?, Vec::new());
        for layer in 0..layers {
            let learns = lowest.is_some_and(|lowest| layer >= lowest);
            let input = learns.then(|| course.on.copied(&x)).transpose()?;
            let kept = course.forward(layer, &mut x)?;
            stages.extend(input.map(|input| Stage { layer, input, kept: (keep == Keep::All).then_some(kept) }));
        }
        let hidden = course.normalised(&x, &course.shared.weights.norm)?;
        let Scored { logprobs, kl, slopes } = course.score(&hidden, base.as_ref(), lowest.is_some())?;
        let logprobs = course.packed.split(logprobs);
        let kl = if base.is_some() { course.packed.split(kl) } else { vec![Vec::new(); logprobs.len()] };
        Ok(CpuPass { course, stages, last: x, slopes, logprobs, kl })
    }
}

impl Pass for CpuPass<'_> {
    fn logprobs(&self) -> &[Vec<f32>] {
        &self.logprobs
    }

    fn kl(&self) -> &[Vec<f32>] {
        &self.kl
    }

    fn backward(self: Box<Self>, d_logprobs: &[Vec<f32>], d_kl: Option<&[Vec<f32>]>, grads: &mut [f32]) -> Result<()> {
        let CpuPass { course, stages, last, slopes, .. } = *self;
        let Some(slopes) = slopes else { return Ok(()) }; // nothing learns
        let (targets, d_logprobs, d_kl) = (last.rows(), d_logprobs.concat(), d_kl.map(<[Vec<f32>]>::concat));
        if d_logprobs.len() != targets || d_kl.as_ref().is_some_and(|d| d.len() != targets) {
            return Err(Error::failure(format!("a backward of {targets} targets takes as many gradients")));
        }
        let (on, config, norm) = (course.on, &course.shared.config, &course.shared.weights.norm);
        let mut d = Plane::new(last.rows(), last.width());
        for row in 0..targets {
            let mut d_hidden: Vec<f32> = slopes.logprob.row(row).iter().map(|slope| slope * d_logprobs[row]).collect();
            if let (Some(slope), Some(d_kl)) = (&slopes.kl, &d_kl) {
                d_hidden.iter_mut().zip(slope.row(row)).for_each(|(d, slope)| *d += slope * d_kl[row]);
            }
            let (x, eps) = (last.row(row), config.rms_norm_eps as f32);
            rms_back(on.level, x, norm, eps, &d_hidden, d.row_mut(row));
        }
        drop((last, slopes));
        for (at, Stage { layer, input, kept }) in stages.into_iter().enumerate().rev() {
            let kept = match kept {
                Some(kept) => kept,
                None => course.forward(layer, &mut course.on.copied(&input)?)?,
            };
            course.back(layer, &input, kept, &mut d, grads, at == 0)?;
        }
        Ok(())
    }
}
