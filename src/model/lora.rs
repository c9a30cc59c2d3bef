//! LoRA weights as plain numbers: which linear layers carry a pair A, B (and with DoRA a magnitude for each output), and one
//! flat f32 vector of all values.
//!
//! The order is by PEFT parameter name, so that optimiser, files and networks agree on it and sums are reproducible.

use std::ops::Range;

/// The seven linear layers of a Qwen block that LoRA can sit on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Target {
    pub const ALL: [Target; 7] = [Target::Q, Target::K, Target::V, Target::O, Target::Gate, Target::Up, Target::Down];

    /// PEFT's and transformers' module name, such as `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Target::Q => "q_proj",
            Target::K => "k_proj",
            Target::V => "v_proj",
            Target::O => "o_proj",
            Target::Gate => "gate_proj",
            Target::Up => "up_proj",
            Target::Down => "down_proj",
        }
    }

    pub fn from_name(name: &str) -> Option<Target> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }

    /// `self_attn` or `mlp`.
    pub fn block(self) -> &'static str {
        match self {
            Target::Q | Target::K | Target::V | Target::O => "self_attn",
            Target::Gate | Target::Up | Target::Down => "mlp",
        }
    }
}

/// One pair: y = W x + scale · B(A x). With DoRA each output of that is then multiplied by its magnitude over the length of
/// its row of W + scale · B A; the bias is added after it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraModule {
    pub layer: usize,
    pub target: Target,
    pub rank: usize,
    pub in_features: usize,
    pub out_features: usize,
    /// alpha / rank, or alpha / √rank for rsLoRA.
    pub scale: f32,
    /// Where A, `[rank, in_features]` row-major, lies in [`LoraWeights::data`].
    pub a: Range<usize>,
    /// Where B, `[out_features, rank]` row-major, lies in [`LoraWeights::data`].
    pub b: Range<usize>,
    /// Where DoRA's magnitudes, `[out_features]`, lie in [`LoraWeights::data`]; `None`: plain LoRA.
    pub magnitude: Option<Range<usize>>,
}

impl LoraModule {
    /// transformers' path of the linear layer: `model.layers.3.mlp.up_proj`.
    pub fn path(&self) -> String {
        module_path(self.layer, self.target)
    }

    /// PEFT's tensor name without `.lora_A.weight`: `base_model.model.model.layers.3.mlp.up_proj`.
    pub fn peft_prefix(&self) -> String {
        peft_prefix(self.layer, self.target)
    }
}

/// transformers' path of a linear layer, which PEFT's names and patterns are about.
pub fn module_path(layer: usize, target: Target) -> String {
    format!("model.layers.{layer}.{}.{}", target.block(), target.name())
}

/// PEFT's name of the adapted module.
pub fn peft_prefix(layer: usize, target: Target) -> String {
    format!("base_model.model.{}", module_path(layer, target))
}

/// Shape of a pair, before it has a place in the flat vector.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraShape {
    pub layer: usize,
    pub target: Target,
    pub rank: usize,
    pub in_features: usize,
    pub out_features: usize,
    pub scale: f32,
    /// Whether it carries DoRA's magnitudes.
    pub dora: bool,
}

/// All pairs of an adapter, ordered by PEFT parameter name, and their values in one vector.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoraWeights {
    pub modules: Vec<LoraModule>,
    pub data: Vec<f32>,
}

impl LoraWeights {
    /// Lays the shapes out in name order, all values zero.
    pub fn zeros(mut shapes: Vec<LoraShape>) -> Self {
        shapes.sort_by_key(|s| peft_prefix(s.layer, s.target));
        let mut at = 0;
        let mut take = |n: usize| {
            at += n;
            at - n..at
        };
        let modules: Vec<LoraModule> = shapes
            .into_iter()
            .map(|s| LoraModule {
                a: take(s.rank * s.in_features),
                b: take(s.out_features * s.rank),
                magnitude: s.dora.then(|| take(s.out_features)),
                layer: s.layer,
                target: s.target,
                rank: s.rank,
                in_features: s.in_features,
                out_features: s.out_features,
                scale: s.scale,
            })
            .collect();
        let data = vec![0.0; at];
        LoraWeights { modules, data }
    }

    /// The pair on one linear layer, if the adapter has one there.
    pub fn module(&self, layer: usize, target: Target) -> Option<&LoraModule> {
        self.modules.iter().find(|m| m.layer == layer && m.target == target)
    }

    /// A of `module`, `[rank, in_features]`.
    pub fn a(&self, module: &LoraModule) -> &[f32] {
        &self.data[module.a.clone()]
    }

    /// B of `module`, `[out_features, rank]`.
    pub fn b(&self, module: &LoraModule) -> &[f32] {
        &self.data[module.b.clone()]
    }

    /// DoRA's magnitudes of `module`, `[out_features]`, if it has them.
    pub fn magnitude(&self, module: &LoraModule) -> Option<&[f32]> {
        module.magnitude.clone().map(|range| &self.data[range])
    }
}
