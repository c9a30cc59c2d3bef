//! Tensor names: Hugging Face's, which networks ask by, and GGUF's.

use std::borrow::Cow;

/// The parts of a block. llama.cpp leaves Qwen's weights as they are: nothing is permuted or transposed.
const PARTS: [(&str, &str); 11] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const OUTPUT: &str = "output.weight";

const WHOLE: [(&str, &str); 3] =
    [("model.embed_tokens.weight", EMBEDDING), ("model.norm.weight", "output_norm.weight"), ("lm_head.weight", OUTPUT)];

/// `model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`; other names stay.
pub fn own_name(name: &str) -> Cow<'_, str> {
    if let Some((_, own)) = WHOLE.iter().find(|(theirs, _)| *theirs == name) {
        return Cow::Borrowed(own);
    }
    let renamed = || {
        let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let (part, suffix) = rest.rsplit_once('.')?;
        let (_, own) = PARTS.iter().find(|(theirs, _)| *theirs == part)?;
        Some(format!("blk.{layer}.{own}.{suffix}"))
    };
    renamed().map_or(Cow::Borrowed(name), Cow::Owned)
}

/// Whether a network of `layers` blocks may have a tensor of this name.
pub(super) fn is_known(own: &str, layers: usize) -> bool {
    let of_block = || {
        let (layer, rest) = own.strip_prefix("blk.")?.split_once('.')?;
        let (part, suffix) = rest.split_once('.')?;
        let number = layer.parse::<usize>().ok().filter(|number| *number < layers && number.to_string() == layer);
        let known = PARTS.iter().any(|(_, own)| *own == part) && matches!(suffix, "weight" | "bias");
        number.filter(|_| known)
    };
    WHOLE.iter().any(|(_, whole)| *whole == own) || of_block().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_over() {
        for (theirs, own) in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
            ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
            ("model.layers.0.something.weight", "model.layers.0.something.weight"),
        ] {
            assert_eq!(own_name(theirs), own);
        }
    }

    #[test]
    fn tensors_of_other_networks_are_unknown() {
        assert!(is_known("blk.1.attn_k_norm.weight", 2) && is_known("output_norm.weight", 2));
        for own in ["rope_freqs.weight", "blk.2.attn_q.weight", "blk.01.attn_q.weight", "blk.0.ffn_gate_exps.weight"] {
            assert!(!is_known(own, 2), "{own}");
        }
    }
}
