//! A training forward and its backward, a stage of the network at a time.
//!
//! A stage is the embedding, a block, or the final norm. Each has a graph of its own, from its input to its output, and the
//! backward hands gradients from the last stage to the first. So between the two only the inputs need to be kept: a large
//! network's graph (0.4 MB a token and layer of Qwen3-0.6B) is thrown away and made again in the backward, one stage at
//! a time; a small network's is kept, which takes no second forward.

use candle_core::{Tensor, Var};

use super::forward::Forward;
use super::head::{self, HeadBackward};
use crate::error::{Error, Result};
use crate::model::Pass;
use crate::model::packed::Packed;

/// A variable and where its gradient goes in the flat vector.
pub(super) struct Place {
    pub var: Var,
    pub start: usize,
}

/// Rows and what they run through; enough to compute any stage, and to compute it again.
pub(super) struct Course<'a> {
    pub forward: Forward<'a>,
    pub packed: Packed,
    /// Whether the graphs wait for the backward, or are made again there.
    pub keeps_graphs: bool,
}

/// Where a stage begins, and maybe the graph to its end.
struct Stage {
    /// `[tokens, hidden]`, a variable where a gradient has to go on from here; none before the embedding.
    input: Option<Tensor>,
    output: Option<Tensor>,
}

impl Course<'_> {
    /// Without graphs: hidden states that predict the targets, `[targets, hidden]`.
    pub fn hidden(&self) -> Result<Tensor> {
        let start = self.stage(0, None)?;
        (1..=self.last()).try_fold(start, |x, stage| Ok(self.stage(stage, Some(&x))?.detach()))
    }

    /// Number of the last stage: 0 is the embedding.
    fn last(&self) -> usize {
        self.forward.weights.blocks.len() + 1
    }

    fn stage(&self, stage: usize, input: Option<&Tensor>) -> Result<Tensor> {
        match input {
            None => self.forward.embed(&self.packed.ids),
            Some(x) if stage == self.last() => self.forward.norm(&self.packed.predicting(x)?),
            Some(x) => self.forward.block(stage - 1, x, &mut |_, q, k, v| self.packed.attend(q, k, v)),
        }
    }
}

/// A forward that waits for its gradients.
pub(super) struct CandlePass<'a> {
    course: Course<'a>,
    stages: Vec<Stage>,
    /// What the last stage gave, without its graph, `[targets, hidden]`.
    hidden: Tensor,
    /// The base's.
    base: Option<Tensor>,
    places: &'a [Place],
    /// Where the output layer's gradient goes, if it is trained.
    head_start: Option<usize>,
    logprobs: Vec<Vec<f32>>,
    kl: Vec<Vec<f32>>,
}

impl<'a> CandlePass<'a> {
    /// `base`: hidden states of the base at the targets, where the KL to it is asked for.
    pub fn new(
        course: Course<'a>,
        base: Option<Tensor>,
        places: &'a [Place],
        head_start: Option<usize>,
    ) -> Result<CandlePass<'a>> {
        let keep = |output: &Tensor| course.keeps_graphs.then(|| output.clone());
        let mut reached = course.stage(0, None)?;
        let mut stages = vec![Stage { input: None, output: keep(&reached) }];
        for stage in 1..=course.last() {
            let input = input_after(reached)?;
            reached = course.stage(stage, Some(&input))?;
            stages.push(Stage { input: Some(input), output: keep(&reached) });
        }
        let hidden = reached.detach();
        let (targets, head) = (&course.packed.targets, &course.forward.weights.head);
        let logprobs = course.packed.split(head::logprobs(&hidden, targets, head)?);
        let kl = match &base {
            Some(base) => course.packed.split(head::kl(&hidden, base, head)?),
            None => vec![Vec::new(); logprobs.len()],
        };
        Ok(CandlePass { course, stages, hidden, base, places, head_start, logprobs, kl })
    }
}

/// What the next stage begins with. The graph before it is let go.
fn input_after(output: Tensor) -> Result<Tensor> {
    match output.track_op() {
        true => Ok(Var::from_tensor(&output.detach())?.into_inner()),
        false => Ok(output), // nothing that learns lies before it
    }
}

impl Pass for CandlePass<'_> {
    fn logprobs(&self) -> &[Vec<f32>] {
        &self.logprobs
    }

    fn kl(&self) -> &[Vec<f32>] {
        &self.kl
    }

    fn backward(self: Box<Self>, d_logprobs: &[Vec<f32>], d_kl: Option<&[Vec<f32>]>, grads: &mut [f32]) -> Result<()> {
        let CandlePass { course, stages, hidden, base, places, head_start, .. } = *self;
        let d_kl = d_kl.map(<[Vec<f32>]>::concat);
        let from_head = HeadBackward {
            hidden: &hidden,
            targets: &course.packed.targets,
            head: &course.forward.weights.head,
            d_logprobs: &d_logprobs.concat(),
            kl: base.as_ref().zip(d_kl.as_deref()),
            head_trains: head_start.is_some(),
        }
        .run()?;
        let mut has_gradient = vec![false; places.len()];
        if let (Some(start), Some(d_head)) = (head_start, from_head.head) {
            add(&d_head, &mut grads[start..])?;
            for (place, has) in places.iter().zip(&mut has_gradient) {
                *has |= place.start == start;
            }
        }
        let mut d_output = from_head.hidden;
        for (number, Stage { input, output }) in stages.into_iter().enumerate().rev() {
            if let Some(courtesy) = course.forward.courtesy {
                courtesy.point()?;
            }
            let output = match output {
                Some(kept) => kept,
                None => course.stage(number, input.as_ref())?,
            };
            if !output.track_op() {
                break; // nothing that learns lies before it
            }
            // The gradient of Σ output·constant with respect to the output is that constant.
            let store = (output * d_output)?.sum_all()?.backward()?;
            for (place, has) in places.iter().zip(&mut has_gradient) {
                if let Some(grad) = store.get(place.var.as_tensor()) {
                    add(grad, &mut grads[place.start..])?;
                    *has = true;
                }
            }
            match input.and_then(|input| store.get(&input).cloned()) {
                Some(d_input) => d_output = d_input,
                None => break,
            }
        }
        match places.iter().zip(has_gradient).find(|(_, has)| !has) {
            Some((place, _)) => Err(Error::failure(format!(
                "a parameter of shape {:?} got no gradient: the graph is cut somewhere before it",
                place.var.shape()
            ))),
            None => Ok(()),
        }
    }
}

fn add(grad: &Tensor, into: &mut [f32]) -> Result<()> {
    let values = grad.flatten_all()?.to_vec1::<f32>()?;
    for (sum, value) in into.iter_mut().zip(values) {
        *sum += value;
    }
    Ok(())
}
