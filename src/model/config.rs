//! The hyper-parameters of a Qwen2 or Qwen3 network, read from `config.json`.

use super::lora::Target;

/// Which of the two families, which differ in attention bias and q/k norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Qwen2 and Qwen2.5: bias on q, k, v.
    Qwen2,
    /// Qwen3: RMS norm on each head of q and k.
    Qwen3,
}

/// Everything that the network needs to know about its shape; checked when it is read.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub family: Family,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Longest sequence that the model was made for (`max_position_embeddings`).
    pub context: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    /// Bias on q, k, v (Qwen2 always; Qwen3 when `attention_bias` is set, then on o too).
    pub attention_bias: bool,
    pub tied_embeddings: bool,
}

impl ModelConfig {
    /// `(in_features, out_features)` of one of the seven linear layers.
    pub fn linear_shape(&self, target: Target) -> (usize, usize) {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match target {
            Target::Q => (self.hidden_size, q),
            Target::K | Target::V => (self.hidden_size, kv),
            Target::O => (q, self.hidden_size),
            Target::Gate | Target::Up => (self.hidden_size, self.intermediate_size),
            Target::Down => (self.intermediate_size, self.hidden_size),
        }
    }
}
