//! The pairs that learn, and where they sit.

use super::linear::{Dora, Pair};
use crate::error::{Error, Result};
use crate::model::cpu::Shared;
use crate::model::cpu::pairs::inverse_norms;
use crate::model::lora::{LoraWeights, Target};

/// The parameters that were loaded last.
pub struct Adapter {
    lora: LoraWeights,
    /// DoRA's of each module, constants until the next load.
    doras: Vec<Option<Dora>>,
    /// Places in `lora.modules`, by layer and place in [`Target::ALL`].
    modules: Vec<[Option<usize>; 7]>,
}

impl Adapter {
    pub fn new(shared: &Shared, layout: &LoraWeights) -> Adapter {
        let mut modules = vec![[None; 7]; shared.config.layers];
        layout.modules.iter().enumerate().for_each(|(at, m)| modules[m.layer][m.target as usize] = Some(at));
        let mut adapter = Adapter { lora: layout.clone(), doras: Vec::new(), modules };
        adapter.measure(shared);
        adapter
    }

    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.lora.data.len()
    }

    pub fn load(&mut self, shared: &Shared, params: &[f32]) -> Result<()> {
        if params.len() != self.len() {
            let (found, expected) = (params.len(), self.len());
            return Err(Error::failure(format!("{found} parameters for an adapter of {expected}")));
        }
        self.lora.data.copy_from_slice(params);
        self.measure(shared);
        Ok(())
    }

    pub fn pair(&self, layer: usize, target: Target) -> Option<Pair<'_>> {
        let at = self.modules[layer][target as usize]?;
        let module = &self.lora.modules[at];
        Some(Pair { module, a: self.lora.a(module), b: self.lora.b(module), dora: self.doras[at].as_ref() })
    }

    /// The first block that learns.
    pub fn lowest(&self) -> Option<usize> {
        self.lora.modules.iter().map(|module| module.layer).min()
    }

    fn measure(&mut self, shared: &Shared) {
        let dora = |module| {
            let magnitudes = self.lora.magnitude(module)?;
            let inverse_norms = inverse_norms(shared, &self.lora, module);
            let gain = magnitudes.iter().zip(&inverse_norms).map(|(m, inverse)| m * inverse).collect();
            Some(Dora { inverse_norms, gain })
        };
        self.doras = self.lora.modules.iter().map(dora).collect();
    }
}
