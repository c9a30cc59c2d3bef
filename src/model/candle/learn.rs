//! Training: packed rows through the network, log-probabilities out, gradients back.
//!
//! candle's graph covers the blocks; the output layer's part is done by hand in `head`, in chunks, and its result enters
//! the graph as the constant of a dot product.

use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use rand::SeedableRng;

use super::forward::{Dropout, Forward, Pairs, Rope, by_head};
use super::head::{self, HeadBackward};
use super::weights::{self, Slot, Weights};
use super::{Shared, check_ids, ops};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::courtesy::Courtesy;
use crate::model::lora::LoraWeights;
use crate::model::{Learner, Pass, PassOptions, Tokens};

/// Rows laid behind each other, and what is asked of them.
struct Packed {
    ids: Vec<u32>,
    positions: Vec<u32>,
    /// Where each row begins and how long it is.
    rows: Vec<(usize, usize)>,
    /// Tokens whose hidden state predicts a target, and those targets.
    predicting: Vec<u32>,
    targets: Vec<u32>,
    /// Number of targets of each row.
    counts: Vec<usize>,
}

impl Packed {
    fn new(config: &ModelConfig, rows: &[&Tokens]) -> Result<Packed> {
        let mut p = Packed {
            ids: Vec::new(),
            positions: Vec::new(),
            rows: Vec::new(),
            predicting: Vec::new(),
            targets: Vec::new(),
            counts: Vec::new(),
        };
        for row in rows {
            check_ids(config, &row.ids)?;
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

    fn longest(&self) -> usize {
        self.rows.iter().map(|(_, len)| *len).max().unwrap_or(0)
    }

    /// Each row attends to itself.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let mixed = self
            .rows
            .iter()
            .map(|&(start, len)| {
                let part = |x: &Tensor| x.narrow(0, start, len);
                Ok(ops::attention(&part(q)?, &by_head(&part(k)?)?, &by_head(&part(v)?)?)?)
            })
            .collect::<Result<Vec<Tensor>>>()?;
        match mixed.as_slice() {
            [one] => Ok(one.clone()),
            many => Ok(Tensor::cat(many, 0)?),
        }
    }

    /// Hidden states that predict the targets, `[targets, hidden]`.
    fn run(&self, forward: &Forward<'_>) -> Result<Tensor> {
        let hidden = forward.hidden(&self.ids, &mut |_, q, k, v| self.attend(q, k, v))?;
        let index = Tensor::from_slice(&self.predicting, self.predicting.len(), hidden.device())?;
        Ok(hidden.index_select(&index, 0)?)
    }

    /// One value a target → one list a row.
    fn split(&self, values: Vec<f32>) -> Vec<Vec<f32>> {
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

/// A forward over packed rows with `weights`, with or without LoRA pairs.
struct Setting<'a> {
    config: &'a ModelConfig,
    weights: &'a Weights,
    courtesy: Option<&'a Arc<Courtesy>>,
}

impl Setting<'_> {
    fn hidden(&self, packed: &Packed, rope: &Rope, pairs: Option<&Pairs>, dropout: Option<Dropout>) -> Result<Tensor> {
        let (cos, sin) = rope.at(&packed.positions)?;
        let Setting { config, weights, courtesy } = *self;
        packed.run(&Forward { config, weights, pairs, dropout, cos, sin, courtesy })
    }
}

/// A variable and where its gradient goes in the flat vector.
struct Place {
    var: Var,
    start: usize,
}

/// Learns the pairs of an adapter over frozen weights.
pub(super) struct CandleLearner {
    shared: Arc<Shared>,
    layout: LoraWeights,
    courtesy: Arc<Courtesy>,
    pairs: Pairs,
    places: Vec<Place>,
}

impl CandleLearner {
    pub fn new(shared: Arc<Shared>, layout: &LoraWeights, courtesy: Arc<Courtesy>) -> Result<Self> {
        let mut learner =
            CandleLearner { shared, layout: layout.clone(), courtesy, pairs: Pairs::default(), places: Vec::new() };
        learner.load(&layout.data)?;
        Ok(learner)
    }

    fn setting(&self) -> Setting<'_> {
        Setting { config: &self.shared.config, weights: &self.shared.weights, courtesy: Some(&self.courtesy) }
    }
}

impl Learner for CandleLearner {
    fn len(&self) -> usize {
        self.layout.data.len()
    }

    fn load(&mut self, params: &[f32]) -> Result<()> {
        let device = &self.shared.device;
        let mut places = Vec::with_capacity(self.layout.modules.len() * 2);
        let modules = &self.layout.modules;
        self.pairs = Pairs::gather(self.shared.config.layers, &self.layout, |i| {
            let m = &modules[i];
            let a = Var::from_slice(&params[m.a.clone()], (m.rank, m.in_features), device)?;
            let b = Var::from_slice(&params[m.b.clone()], (m.out_features, m.rank), device)?;
            let tensors = (a.as_tensor().clone(), b.as_tensor().clone());
            places.push(Place { var: a, start: m.a.start });
            places.push(Place { var: b, start: m.b.start });
            Ok(tensors)
        })?;
        self.places = places;
        Ok(())
    }

    fn forward<'a>(&'a self, rows: &[&Tokens], options: PassOptions) -> Result<Box<dyn Pass + 'a>> {
        let packed = Packed::new(&self.shared.config, rows)?;
        let rope = self.shared.rope(packed.longest())?;
        let dropout = options.dropout.filter(|(p, _)| *p > 0.0).map(|(probability, seed)| Dropout {
            probability,
            rng: std::cell::RefCell::new(rand::rngs::StdRng::seed_from_u64(seed)),
        });
        let hidden = self.setting().hidden(&packed, &rope, Some(&self.pairs), dropout)?;
        let base = match options.kl {
            true => Some(self.setting().hidden(&packed, &rope, None, None)?),
            false => None,
        };
        let head = &self.shared.weights.head;
        let pass = CandlePass::new(packed, hidden, base, head, &self.places)?;
        Ok(Box::new(CandlePass { courtesy: Some(&self.courtesy), ..pass }))
    }

    fn reference(&self, rows: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
        let packed = Packed::new(&self.shared.config, rows)?;
        let rope = self.shared.rope(packed.longest())?;
        let hidden = self.setting().hidden(&packed, &rope, None, None)?;
        Ok(packed.split(head::logprobs(&hidden, &packed.targets, &self.shared.weights.head)?))
    }
}

/// Learns every weight of a network: pretraining.
pub(super) struct FullLearner {
    config: ModelConfig,
    device: Device,
    slots: Vec<Slot>,
    rope: Rope,
    loaded: Option<(Weights, Vec<Place>)>,
}

impl FullLearner {
    pub fn new(config: ModelConfig, device: Device) -> Result<Self> {
        let slots = weights::slots(&config)?;
        let rope = Rope::new(&config, config.context, &device)?;
        Ok(FullLearner { config, device, slots, rope, loaded: None })
    }

    /// The place in the flat vector of the matrix that the output layer multiplies by.
    fn head_start(&self) -> Option<usize> {
        let name = if self.config.tied_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        self.slots.iter().find(|s| s.name == name).map(|s| s.start)
    }
}

impl Learner for FullLearner {
    fn len(&self) -> usize {
        self.slots.iter().map(Slot::len).sum()
    }

    fn load(&mut self, params: &[f32]) -> Result<()> {
        let (weights, vars) = weights::variables(&self.config, &self.slots, params, &self.device)?;
        let places = vars.into_iter().zip(&self.slots).map(|(var, s)| Place { var, start: s.start }).collect();
        self.loaded = Some((weights, places));
        Ok(())
    }

    fn forward<'a>(&'a self, rows: &[&Tokens], options: PassOptions) -> Result<Box<dyn Pass + 'a>> {
        let Some((weights, places)) = &self.loaded else {
            return Err(Error::failure("the learner has no parameters yet"));
        };
        if options.kl {
            return Err(Error::failure("a network that learns all its weights has no base to compare with"));
        }
        let packed = Packed::new(&self.config, rows)?;
        if packed.longest() > self.rope.positions() {
            return Err(Error::failure(format!(
                "a row of {} tokens is longer than the context of {}",
                packed.longest(),
                self.rope.positions()
            )));
        }
        let setting = Setting { config: &self.config, weights, courtesy: None };
        let hidden = setting.hidden(&packed, &self.rope, None, None)?;
        let pass = CandlePass::new(packed, hidden, None, &weights.head, places)?;
        Ok(Box::new(CandlePass { head_start: self.head_start(), ..pass }))
    }

    fn reference(&self, _rows: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
        Err(Error::failure("a network that learns all its weights has no reference model"))
    }
}

struct CandlePass<'a> {
    packed: Packed,
    /// With its graph, `[targets, hidden]`.
    hidden: Tensor,
    /// The base's, without a graph.
    base: Option<Tensor>,
    head: &'a Tensor,
    places: &'a [Place],
    /// Where the output layer's gradient goes, if it is trained.
    head_start: Option<usize>,
    courtesy: Option<&'a Arc<Courtesy>>,
    logprobs: Vec<Vec<f32>>,
    kl: Vec<Vec<f32>>,
}

impl<'a> CandlePass<'a> {
    fn new(
        packed: Packed,
        hidden: Tensor,
        base: Option<Tensor>,
        head: &'a Tensor,
        places: &'a [Place],
    ) -> Result<Self> {
        let fixed = hidden.detach();
        let logprobs = packed.split(head::logprobs(&fixed, &packed.targets, head)?);
        let kl = match &base {
            Some(base) => packed.split(head::kl(&fixed, base, head)?),
            None => vec![Vec::new(); packed.counts.len()],
        };
        Ok(CandlePass { packed, hidden, base, head, places, head_start: None, courtesy: None, logprobs, kl })
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
        let d_kl = d_kl.map(<[Vec<f32>]>::concat);
        let fixed = self.hidden.detach();
        let from_head = HeadBackward {
            hidden: &fixed,
            targets: &self.packed.targets,
            head: self.head,
            d_logprobs: &d_logprobs.concat(),
            kl: self.base.as_ref().zip(d_kl.as_deref()),
            head_trains: self.head_start.is_some(),
        }
        .run()?;
        // The gradient of Σ hidden·constant with respect to hidden is that constant.
        let store = (&self.hidden * &from_head.hidden)?.sum_all()?.backward().map_err(|error| {
            // candle wraps what stopped it, and its kind is lost on the way.
            let cancelled = self.courtesy.is_some_and(|courtesy| courtesy.is_cancelled());
            if cancelled { Error::interrupted() } else { error.into() }
        })?;
        for place in self.places {
            let by_hand = self.head_start == Some(place.start) && store.get(place.var.as_tensor()).is_none();
            if !by_hand {
                add(&store, place, grads)?; // a tied output layer has a share in the graph too: the embedding's
            }
        }
        if let (Some(start), Some(d_head)) = (self.head_start, from_head.head) {
            add_values(&d_head, &mut grads[start..])?;
        }
        Ok(())
    }
}

/// Adds one variable's gradient; a variable without one means that an operation has cut the graph.
fn add(store: &GradStore, place: &Place, grads: &mut [f32]) -> Result<()> {
    match store.get(place.var.as_tensor()) {
        Some(grad) => add_values(grad, &mut grads[place.start..]),
        None => Err(Error::failure(format!(
            "a parameter of shape {:?} got no gradient: the graph is cut somewhere before it",
            place.var.shape()
        ))),
    }
}

fn add_values(grad: &Tensor, into: &mut [f32]) -> Result<()> {
    let values = grad.flatten_all()?.to_vec1::<f32>()?;
    for (sum, value) in into.iter_mut().zip(values) {
        *sum += value;
    }
    Ok(())
}
