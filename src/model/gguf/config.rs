//! The hyper-parameters of a GGUF file, under its own names, within the bounds that hold for every file.

use super::metadata::{Metadata, needed};
use super::names;
use crate::error::{Error, Result};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::{Family, ModelConfig, RUNS, limit};
use crate::model::rope::RopeScaling;
use crate::text;

/// Errors name the key, what it holds and what it may hold; so does what finch does not run.
pub(super) fn read(metadata: &Metadata, tensors: &Checkpoint) -> Result<ModelConfig> {
    let (family, architecture) = family(metadata)?;
    let key = |name: &str| format!("{architecture}.{name}");
    let size = |name: &str, max: u64| -> Result<Option<usize>> {
        let key = key(name);
        let Some(value) = metadata.whole(&key)? else { return Ok(None) };
        match usize::try_from(value) {
            Ok(size) if (1..=max).contains(&value) => Ok(Some(size)),
            _ => Err(Error::failure(format!("{key} is {value}, outside 1 to {max}"))),
        }
    };
    let needed_size = |name: &str, max: u64| needed(&key(name), size(name, max)?);

    let hidden_size = needed_size("embedding_length", limit::HIDDEN)?;
    let heads = needed_size("attention.head_count", limit::HEADS)?;
    let kv_heads = size("attention.head_count_kv", heads as u64)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        let (count, shared) = (key("attention.head_count"), key("attention.head_count_kv"));
        return Err(Error::failure(format!("{count} is {heads}, no multiple of {shared}, which is {kv_heads}")));
    }
    let head_dim = match size("attention.key_length", limit::HEAD_DIM)? {
        Some(dim) => dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let (hidden, count) = (key("embedding_length"), key("attention.head_count"));
            return Err(Error::failure(format!("{hidden} is {hidden_size}, no multiple of {count}, which is {heads}")));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(Error::failure(format!("heads of {head_dim} numbers: rotary embeddings need an even number")));
    }
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = size(name, limit::HEAD_DIM)?.filter(|&other| other != head_dim) {
            let key = key(name);
            return Err(
                Error::failure(format!("{key} is {other}; finch runs it equal to the heads' {head_dim}")).hint(RUNS)
            );
        }
    }
    let within = |name: &str, value: f64, allowed: bool, range: &str| match allowed {
        true => Ok(value),
        false => Err(Error::failure(format!("{} is {}, {range}", key(name), text::number(value)))),
    };
    let epsilon_key = "attention.layer_norm_rms_epsilon";
    let epsilon = needed(&key(epsilon_key), metadata.real(&key(epsilon_key))?)?;
    let theta = metadata.real(&key("rope.freq_base"))?.unwrap_or(10_000.0); // llama.cpp's default
    refuse_variants(metadata, &key)?;

    let context = needed_size("context_length", limit::CONTEXT)?;
    let rope_scaling = rope_scaling(metadata, &key, context)?;
    let config = ModelConfig {
        family,
        vocab_size: vocabulary(tensors)?,
        hidden_size,
        intermediate_size: needed_size("feed_forward_length", limit::INTERMEDIATE)?,
        layers: needed_size("block_count", limit::LAYERS)?,
        heads,
        kv_heads,
        head_dim,
        context: rope_scaling.context(context),
        rms_norm_eps: within(
            epsilon_key,
            epsilon,
            epsilon > 0.0 && epsilon <= limit::EPSILON,
            "not above 0 and 0.1 at most",
        )?,
        rope_theta: within("rope.freq_base", theta, (1.0..=limit::ROPE_THETA).contains(&theta), "outside 1 to 1e12")?,
        rope_scaling,
        attention_bias: match family {
            Family::Qwen2 => true,
            Family::Qwen3 => tensors.contains("model.layers.0.self_attn.q_proj.bias"),
        },
        tied_embeddings: !tensors.contains(names::OUTPUT),
    };
    if let Some(strange) = tensors.names().find(|name| !names::is_known(name, config.layers)) {
        return Err(Error::failure(format!(
            "tensor {strange} belongs to no {architecture} network of {} blocks",
            config.layers
        ))
        .hint(RUNS));
    }
    Ok(config)
}

/// The family and its name in keys; a file of another architecture or kind is refused by name.
fn family(metadata: &Metadata) -> Result<(Family, &str)> {
    let refuse = |what: String| Err(Error::failure(what).hint(RUNS));
    if let Some(kind) = metadata.name("general.type")?.filter(|kind| *kind != "model") {
        let error = Error::failure(format!("general.type is {kind}, not model"));
        return Err(match kind {
            "adapter" => error.hint("finch takes adapters in as PEFT folders: `finch adapters import`"),
            _ => error.hint(RUNS),
        });
    }
    let architecture = needed("general.architecture", metadata.name("general.architecture")?)?;
    match architecture {
        "qwen2" => Ok((Family::Qwen2, architecture)),
        "qwen3" => Ok((Family::Qwen3, architecture)),
        other => refuse(format!("general.architecture is {other}")),
    }
}

/// What a dense Qwen could be set to, and finch does not run.
fn refuse_variants(metadata: &Metadata, key: &impl Fn(&str) -> String) -> Result<()> {
    let experts = key("expert_count");
    if let Some(count) = metadata.whole(&experts)?.filter(|&count| count > 0) {
        return Err(Error::failure(format!("{experts} is {count}; finch runs dense models")).hint(RUNS));
    }
    let causal = key("attention.causal");
    if metadata.flag(&causal)? == Some(false) {
        return Err(Error::failure(format!("{causal} is false; finch runs language models")).hint(RUNS));
    }
    Ok(())
}

/// llama.cpp's keys for what `rope_parameters` are elsewhere.
fn rope_scaling(metadata: &Metadata, key: &impl Fn(&str) -> String, context: usize) -> Result<RopeScaling> {
    let named = |setting: &str| {
        key(match setting {
            "rope_type" => "rope.scaling.type",
            "factor" => "rope.scaling.factor",
            "original_max_position_embeddings" => "rope.scaling.original_context_length",
            "beta_fast" => "rope.scaling.yarn_beta_fast",
            "beta_slow" => "rope.scaling.yarn_beta_slow",
            other => return format!("{} ({other})", key("rope.scaling")),
        })
    };
    // What these would change has no counterpart in transformers, and no Qwen file sets them.
    for (name, neutral) in
        [("attn_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_ext_factor", 1.0), ("yarn_log_multiplier", 0.0)]
    {
        let key = key(&format!("rope.scaling.{name}"));
        if let Some(value) = metadata.real(&key)?.filter(|&value| value != neutral) {
            return Err(Error::failure(format!("{key} is {value}; finch runs {neutral}")).hint(RUNS));
        }
    }
    let linear = key("rope.scale_linear");
    let old = metadata.real(&linear)?.filter(|&factor| factor != 1.0);
    let factor = metadata.real(&named("factor"))?.filter(|&factor| factor != 0.0); // llama.cpp: 0 is none
    let kind = match metadata.name(&named("rope_type"))? {
        // llama.cpp's default, with a factor; files of 2023 have another name for that.
        None if old.or(factor).is_some() => Some("linear"),
        kind => kind,
    };
    RopeScaling::read(kind, context, named, |setting| match setting {
        "factor" => Ok(factor.or(old)),
        "original_max_position_embeddings" | "beta_fast" | "beta_slow" => metadata.real(&named(setting)),
        _ => Ok(None),
    })
}

/// Rows of the embedding.
fn vocabulary(tensors: &Checkpoint) -> Result<usize> {
    match tensors.shape(names::EMBEDDING) {
        None => Err(Error::failure(format!("tensor {} is missing", names::EMBEDDING))
            .hint("the file holds no weights: a vocabulary alone cannot answer")),
        Some(&[rows, _]) if rows as u64 <= limit::VOCABULARY => Ok(rows),
        Some(shape) => Err(Error::failure(format!(
            "tensor {} has shape {shape:?}, not 1 to {} rows",
            names::EMBEDDING,
            limit::VOCABULARY
        ))),
    }
}
