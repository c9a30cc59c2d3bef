//! The learners: of an adapter's pairs over frozen weights, and of all weights.
//!
//! candle's graphs cover the blocks; the output layer's part is done by hand in `head`, in chunks.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::forward::{Forward, Rope};
use super::pairs::{Pairs, Parts};
use super::pass::{CandlePass, Course, Place};
use super::weights::{self, Slot, Weights};
use super::{Shared, head};
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::courtesy::Courtesy;
use crate::model::dropout::Dropout;
use crate::model::lora::LoraWeights;
use crate::model::packed::Packed;
use crate::model::{Learner, Pass, PassOptions, Tokens};

/// Learns the pairs of an adapter over frozen weights.
pub(super) struct CandleLearner {
    shared: Arc<Shared>,
    layout: LoraWeights,
    courtesy: Arc<Courtesy>,
    pairs: Pairs,
    places: Vec<Place>,
    /// See [`Course`].
    pub(super) keeps_graphs: bool,
}

impl CandleLearner {
    pub fn new(shared: Arc<Shared>, layout: &LoraWeights, courtesy: Arc<Courtesy>) -> Result<Self> {
        let (pairs, places, keeps_graphs) = (Pairs::default(), Vec::new(), shared.config.is_small());
        let mut learner = CandleLearner { shared, layout: layout.clone(), courtesy, pairs, places, keeps_graphs };
        learner.load(&layout.data)?;
        Ok(learner)
    }

    /// The rows over the base, alone or with the pairs on top.
    fn course<'a>(
        &'a self,
        rows: &[&Tokens],
        pairs: Option<&'a Pairs>,
        dropout: Option<Dropout>,
    ) -> Result<Course<'a>> {
        let Shared { config, weights, .. } = &*self.shared;
        let packed = Packed::new(config, rows)?;
        let (cos, sin) = self.shared.rope(packed.longest())?.at(&packed.positions)?;
        let courtesy = Some(&*self.courtesy);
        let forward = Forward { config, weights, pairs, dropout, cos, sin, courtesy };
        Ok(Course { forward, packed, keeps_graphs: self.keeps_graphs })
    }
}

impl Learner for CandleLearner {
    fn len(&self) -> usize {
        self.layout.data.len()
    }

    fn load(&mut self, params: &[f32]) -> Result<()> {
        let shared = &self.shared;
        let mut places = Vec::with_capacity(self.layout.modules.len() * 3);
        let mut variable = |range: &Range<usize>, shape: &[usize]| -> Result<Tensor> {
            let var = Var::from_slice(&params[range.clone()], shape, &shared.device)?;
            let tensor = var.as_tensor().clone();
            places.push(Place { var, start: range.start });
            Ok(tensor)
        };
        let gather = || {
            Pairs::gather(shared, &self.layout, |m| {
                let a = variable(&m.a, &[m.rank, m.in_features])?;
                let b = variable(&m.b, &[m.out_features, m.rank])?;
                let magnitude = m.magnitude.as_ref().map(|range| variable(range, &[m.out_features])).transpose()?;
                Ok(Parts { a, b, magnitude })
            })
        };
        self.pairs = shared.run(gather)?;
        self.places = places;
        Ok(())
    }

    fn forward<'a>(&'a self, rows: &[&Tokens], options: PassOptions) -> Result<Box<dyn Pass + 'a>> {
        let base = options.kl.then(|| self.course(rows, None, None)?.hidden()).transpose()?;
        let course = self.course(rows, Some(&self.pairs), Dropout::of(&options))?;
        Ok(Box::new(CandlePass::new(course, base, &self.places, None)?))
    }

    fn reference(&self, rows: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
        let course = self.course(rows, None, None)?;
        let Course { forward, packed, .. } = &course;
        Ok(packed.split(head::logprobs(&course.hidden()?, &packed.targets, &forward.weights.head)?))
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
        let (cos, sin) = self.rope.at(&packed.positions)?;
        let forward = Forward { config: &self.config, weights, pairs: None, dropout: None, cos, sin, courtesy: None };
        Ok(Box::new(CandlePass::new(Course { forward, packed, keeps_graphs: true }, None, places, self.head_start())?))
    }

    fn reference(&self, _rows: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
        Err(Error::failure("a network that learns all its weights has no reference model"))
    }
}
