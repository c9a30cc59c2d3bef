//! What the files of a model folder say, as the keys of a GGUF file: names and values as llama.cpp's converter has them
//! (`convert_hf_to_gguf.py`).

use serde::Deserialize;
use serde_json::Value;

use super::tokenizer::qwen;
use super::write::Item;
use crate::error::{Context, Error, Result};
use crate::json;
use crate::model::config::{Family, ModelConfig};
use crate::model::generation::GenerationConfig;
use crate::model::rope::{RopeScaling, Yarn};
use crate::model::template::ChatTemplate;
use crate::model::tokenizer::file::Parts;
use crate::model::tokenizer::looks_special;

/// A model folder, read and checked.
pub struct Folder<'a> {
    pub name: &'a str,
    pub config: &'a ModelConfig,
    /// Numbers in all tensors.
    pub parameters: u64,
    pub config_json: &'a [u8],
    pub tokenizer_config: Option<&'a [u8]>,
    pub tokenizer: &'a Parts,
    pub template: &'a ChatTemplate,
    pub generation: &'a GenerationConfig,
}

/// Those settings of `config.json` that GGUF keeps otherwise than [`ModelConfig`].
#[derive(Deserialize, Default)]
struct Model {
    max_position_embeddings: Option<usize>,
    head_dim: Option<Value>,
    bos_token_id: Option<Value>,
    eos_token_id: Option<Value>,
    pad_token_id: Option<Value>,
}

#[derive(Deserialize, Default)]
struct Settings {
    bos_token: Option<Value>,
    eos_token: Option<Value>,
    pad_token: Option<Value>,
    add_bos_token: Option<bool>,
}

type Keys = Vec<(String, Item)>;

/// The keys, in the converter's order, but for those about the storage.
///
/// Errors name what no key can say: another tokenizer than Qwen's, or a way of stretching the context.
pub fn keys(folder: &Folder<'_>) -> Result<Keys> {
    let Folder { name, config, parameters, config_json, generation, .. } = *folder;
    let model: Model = json::read(config_json).context("config.json")?;
    let architecture = match config.family {
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
    };
    let mut keys: Keys = Vec::new();
    let mut put = |key: &str, item| keys.push((key.to_string(), item));
    put("general.architecture", Item::text(architecture));
    put("general.type", Item::text("model"));
    put("general.name", Item::text(name));
    put("general.size_label", Item::Text(size_label(parameters)));
    for (advice, value) in [
        ("temp", generation.temperature.map(|t| Item::F32(t as f32))),
        ("top_k", generation.top_k.map(|k| Item::U32(u32::try_from(k).unwrap_or(u32::MAX)))),
        ("top_p", generation.top_p.map(|p| Item::F32(p as f32))),
        ("penalty_repeat", generation.repetition_penalty.map(Item::F32)),
    ] {
        value.into_iter().for_each(|item| put(&format!("general.sampling.{advice}"), item));
    }
    // Stretched by YaRN, `config.context` is the longer one; the file says the original.
    let context = model.max_position_embeddings.map_or(config.context, |original| original.min(config.context));
    let mut put = |key: &str, item| keys.push((format!("{architecture}.{key}"), item));
    put("block_count", Item::U32(config.layers as u32));
    put("context_length", Item::U32(context as u32));
    put("embedding_length", Item::U32(config.hidden_size as u32));
    put("feed_forward_length", Item::U32(config.intermediate_size as u32));
    put("attention.head_count", Item::U32(config.heads as u32));
    put("attention.head_count_kv", Item::U32(config.kv_heads as u32));
    put("rope.freq_base", Item::F32(config.rope_theta as f32));
    rope_scaling(&config.rope_scaling, &mut put)?;
    put("attention.layer_norm_rms_epsilon", Item::F32(config.rms_norm_eps as f32));
    if model.head_dim.as_ref().is_some_and(|dim| !dim.is_null()) || config.head_dim * config.heads != config.hidden_size
    {
        put("attention.key_length", Item::U32(config.head_dim as u32));
        put("attention.value_length", Item::U32(config.head_dim as u32));
    }
    tokenizer(folder, &model, &mut keys)?;
    Ok(keys)
}

fn rope_scaling(scaling: &RopeScaling, put: &mut impl FnMut(&str, Item)) -> Result<()> {
    match *scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", Item::text("linear"));
            put("rope.scaling.factor", Item::F32(factor as f32));
        }
        RopeScaling::Yarn(yarn) => {
            let Yarn { factor, original_context, beta_fast, beta_slow, .. } = yarn;
            let usual = Yarn::new(factor, original_context);
            if yarn != (Yarn { beta_fast, beta_slow, ..usual }) {
                return Err(Error::failure(
                    "rope_scaling: YaRN's attention_factor, mscale or truncate is set; GGUF has no key for it",
                ));
            }
            put("rope.scaling.type", Item::text("yarn"));
            put("rope.scaling.factor", Item::F32(factor as f32));
            put("rope.scaling.original_context_length", Item::U32(original_context as u32));
            if (beta_fast, beta_slow) != (usual.beta_fast, usual.beta_slow) {
                put("rope.scaling.yarn_beta_fast", Item::F32(beta_fast as f32));
                put("rope.scaling.yarn_beta_slow", Item::F32(beta_slow as f32));
            }
        }
    }
    Ok(())
}

fn tokenizer(folder: &Folder<'_>, model: &Model, keys: &mut Keys) -> Result<()> {
    let Folder { config, tokenizer, template, generation, .. } = *folder;
    let (normalizer, pre_tokenizer) = qwen()?;
    let same = serde_json::to_value(&tokenizer.normalizer)? == serde_json::to_value(Some(normalizer))?
        && splits(serde_json::to_value(&tokenizer.pre_tokenizer)?)
            == splits(serde_json::to_value(Some(pre_tokenizer))?);
    if !same {
        return Err(Error::failure("tokenizer.json: it splits text otherwise than Qwen's")
            .hint("a GGUF file names a tokenizer's way of splitting, and finch knows the name of Qwen's alone"));
    }
    let settings: Settings = match folder.tokenizer_config {
        Some(json) => json::read(json).context("tokenizer_config.json")?,
        None => Settings::default(),
    };
    let mut put = |key: &str, item| keys.push((format!("tokenizer.ggml.{key}"), item));
    put("model", Item::text("gpt2"));
    put("pre", Item::text("qwen2"));
    let (tokens, types) = vocabulary(tokenizer, config.vocab_size);
    put("tokens", Item::Texts(tokens));
    put("token_type", Item::I32s(types));
    put("merges", Item::Texts(tokenizer.merges.iter().map(|(left, right)| format!("{left} {right}")).collect()));

    let id_of = |token: &str| {
        let added = tokenizer.added.iter().find(|(_, content, _)| content == token).map(|(id, ..)| *id);
        added.or_else(|| tokenizer.vocab.get(token).copied())
    };
    // tokenizer_config.json comes before config.json, as in the converter.
    let special = |token: &Option<Value>, id: &Option<Value>| {
        let token = token.as_ref().and_then(|token| token.get("content").unwrap_or(token).as_str());
        let id = id.as_ref().and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
        token.and_then(id_of).or(id).filter(|&id| (id as usize) < config.vocab_size)
    };
    let bos = special(&settings.bos_token, &model.bos_token_id);
    let eos = special(&settings.eos_token, &model.eos_token_id).or_else(|| generation.eos.first().copied());
    // What else ends an answer, but for the ends of a turn that every reader knows by their texts.
    let known = ["<|im_end|>", "<|endoftext|>"].map(id_of);
    let mut more = generation.eos.iter().copied().filter(|id| eos != Some(*id) && !known.contains(&Some(*id)));
    for (name, id) in [
        ("bos", bos),
        ("eos", eos),
        ("eot", more.next()),
        ("eom", more.next()),
        ("padding", special(&settings.pad_token, &model.pad_token_id)),
    ] {
        id.into_iter().for_each(|id| put(&format!("{name}_token_id"), Item::U32(id)));
    }
    put("add_bos_token", Item::Flag(settings.add_bos_token == Some(true)));
    if template.is_own() {
        keys.push(("tokenizer.chat_template".to_string(), Item::text(template.source())));
    }
    Ok(())
}

/// The way of splitting without what changes no id: how offsets are reported.
fn splits(mut pre_tokenizer: Value) -> Value {
    let steps = pre_tokenizer.get_mut("pretokenizers").and_then(Value::as_array_mut);
    for step in steps.into_iter().flatten().filter_map(Value::as_object_mut) {
        step.remove("trim_offsets");
    }
    pre_tokenizer
}

/// A token for each of the embedding's `rows`, and what kind it is (`llama_token_type`).
fn vocabulary(tokenizer: &Parts, rows: usize) -> (Vec<String>, Vec<i32>) {
    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    const USER_DEFINED: i32 = 4;
    const UNUSED: i32 = 5;
    let mut all: Vec<(String, i32)> = (0..rows).map(|id| (format!("[PAD{id}]"), UNUSED)).collect();
    let added = tokenizer.added.iter().map(|(id, content, special)| {
        let kind = if *special || looks_special(content) { CONTROL } else { USER_DEFINED };
        (*id, content, kind)
    });
    // Added tokens last: where they have an id of the vocabulary's, they stand for it.
    for (id, token, kind) in tokenizer.vocab.iter().map(|(token, id)| (*id, token, NORMAL)).chain(added) {
        if let Some(place) = all.get_mut(id as usize) {
            *place = (token.clone(), kind);
        }
    }
    all.into_iter().unzip()
}

/// "494M", "1.5B": two digits at least.
fn size_label(parameters: u64) -> String {
    let (scaled, unit) = match parameters as f64 {
        n if n > 1e12 => (n * 1e-12, "T"),
        n if n > 1e9 => (n * 1e-9, "B"),
        n if n > 1e6 => (n * 1e-6, "M"),
        n => (n * 1e-3, "K"),
    };
    let digits = if scaled.round() >= 10.0 { 0 } else { 1 };
    format!("{scaled:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_converters_labels() {
        for (parameters, label) in
            [(494_032_768, "494M"), (596_049_920, "596M"), (1_543_714_304, "1.5B"), (7_615_616_512, "7.6B")]
        {
            assert_eq!(size_label(parameters), label);
        }
    }
}
