//! The hyper-parameters of a Qwen2 or Qwen3 network, read from `config.json`.

use serde::Deserialize;
use serde_json::Value;

use super::lora::{LoraWeights, Target};
use super::rope::RopeScaling;
use crate::error::{Context, Error, Result};
use crate::{json, text};

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
    /// Longest sequence that the model was made or stretched for, in tokens.
    pub context: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// Bias on q, k, v (Qwen2 always; Qwen3 when `attention_bias` is set, then on o too).
    pub attention_bias: bool,
    pub tied_embeddings: bool,
}

/// The hint of every refusal of a network that finch has no arithmetic for.
pub(super) const RUNS: &str = "finch runs dense Qwen2, Qwen2.5 and Qwen3 language models";

/// The most that a hyper-parameter may be, wherever it comes from; the least is 1.
pub(super) mod limit {
    pub const VOCABULARY: u64 = 1 << 22;
    pub const HIDDEN: u64 = 1 << 16;
    pub const INTERMEDIATE: u64 = 1 << 20;
    pub const LAYERS: u64 = 1 << 9;
    pub const HEADS: u64 = 1 << 10;
    pub const HEAD_DIM: u64 = 1 << 10;
    pub const CONTEXT: u64 = 1 << 24;
    pub const EPSILON: f64 = 0.1;
    pub const ROPE_THETA: f64 = 1e12;
    pub const ROPE_FACTOR: f64 = 1e4;
}

impl ModelConfig {
    /// Too small for one product to be worth sharing between threads; whole passes run side by side instead.
    pub fn is_small(&self) -> bool {
        self.linear_numbers() + self.vocab_size * self.hidden_size < 50_000_000
    }

    /// Weights of the linear layers of all blocks: as many multiplications a token takes, without attention and logits.
    pub fn linear_numbers(&self) -> usize {
        let block: usize = Target::ALL.into_iter().map(|t| self.linear_shape(t)).map(|(i, o)| i * o).sum();
        self.layers * block
    }

    /// Whether one of the seven linear layers has a bias.
    pub fn has_bias(&self, target: Target) -> bool {
        match target {
            Target::Q | Target::K | Target::V => self.attention_bias,
            Target::O => self.attention_bias && self.family == Family::Qwen3,
            Target::Gate | Target::Up | Target::Down => false,
        }
    }

    /// Errors when there is no id, or one that the embedding does not have.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.vocab_size) {
            Some(id) => Err(Error::failure(format!("token id {id} is outside the vocabulary of {}", self.vocab_size))),
            None if ids.is_empty() => Err(Error::failure("no tokens were given to the network")),
            None => Ok(()),
        }
    }

    /// Errors, naming the module, when an adapter is made for another shape: it is used as it is or not at all.
    pub fn check_fit(&self, lora: &LoraWeights) -> Result<()> {
        for m in &lora.modules {
            let name = m.peft_prefix();
            if m.layer >= self.layers {
                return Err(Error::failure(format!("{name}: the base has only {} layers", self.layers)));
            }
            let (inputs, outputs) = self.linear_shape(m.target);
            if (m.in_features, m.out_features) != (inputs, outputs) {
                return Err(Error::failure(format!(
                    "{name}: the adapter is made for {} → {}, the base has {inputs} → {outputs}",
                    m.in_features, m.out_features
                )));
            }
        }
        Ok(())
    }

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

/// `config.json` as it stands, with transformers' defaults where they are harmless.
#[derive(Deserialize)]
struct Raw {
    vocab_size: u64,
    hidden_size: u64,
    intermediate_size: u64,
    num_hidden_layers: u64,
    num_attention_heads: u64,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    partial_rotary_factor: Option<f64>,
    attention_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<u64>,
    max_window_layers: Option<u64>,
    layer_types: Option<Vec<String>>,
    num_experts: Option<u64>,
    quantization_config: Option<Value>,
    dual_chunk_attention_config: Option<Chunks>,
    use_mrope: Option<bool>,
}

/// How the models for a million tokens attend beyond their training's length.
#[derive(Deserialize)]
struct Chunks {
    original_max_position_embeddings: u64,
}

impl ModelConfig {
    /// Reads `config.json` of a Hugging Face folder.
    ///
    /// Errors name what finch does not run (another family, experts, unknown rope scaling, sliding windows, quantised
    /// weights)
    /// and every number outside sane bounds; nothing that follows needs to check them again.
    pub fn from_json(json: &[u8]) -> Result<ModelConfig> {
        read(json).map_err(|e| e.context("config.json"))
    }
}

fn read(json: &[u8]) -> Result<ModelConfig> {
    // The family comes first: a config of another family may lack the keys of these two.
    let value: Value = json::read(json)?;
    let family = family(&value)?;
    let raw: Raw = json::typed(value)?;
    refuse_variants(&raw)?;

    let size = |key: &str, value: u64, max: u64| match usize::try_from(value) {
        Ok(size) if (1..=max).contains(&value) => Ok(size),
        _ => Err(Error::failure(format!("{key} is {value}, outside 1 to {max}"))),
    };
    let hidden_size = size("hidden_size", raw.hidden_size, limit::HIDDEN)?;
    let heads = size("num_attention_heads", raw.num_attention_heads, limit::HEADS)?;
    let kv_heads = size("num_key_value_heads", raw.num_key_value_heads.unwrap_or(heads as u64), heads as u64)?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(Error::failure(format!("{heads} attention heads cannot share {kv_heads} key/value heads evenly")));
    }
    let head_dim = match (raw.head_dim, family) {
        (Some(dim), _) => size("head_dim", dim, limit::HEAD_DIM)?,
        (None, Family::Qwen3) => 128, // transformers' default
        (None, Family::Qwen2) if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        (None, Family::Qwen2) => {
            return Err(Error::failure(format!("hidden_size {hidden_size} does not divide into {heads} heads")));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(Error::failure(format!("head_dim is {head_dim}: rotary embeddings need an even number")));
    }
    let rms_norm_eps = raw.rms_norm_eps.unwrap_or(1e-6);
    if !(rms_norm_eps > 0.0 && rms_norm_eps <= limit::EPSILON) {
        return Err(Error::failure(format!(
            "rms_norm_eps is {}, not above 0 and {} at most",
            text::number(rms_norm_eps),
            limit::EPSILON
        )));
    }
    let mut context = size("max_position_embeddings", raw.max_position_embeddings.unwrap_or(32_768), limit::CONTEXT)?;
    if let Some(Chunks { original_max_position_embeddings: original }) = raw.dual_chunk_attention_config {
        // Up to here chunked attention is attention to everything.
        context = context.min(size(
            "dual_chunk_attention_config: original_max_position_embeddings",
            original,
            limit::CONTEXT,
        )?);
    }
    let (rope_theta, rope_scaling) = rope(&raw, context)?;
    let config = ModelConfig {
        family,
        vocab_size: size("vocab_size", raw.vocab_size, limit::VOCABULARY)?,
        hidden_size,
        intermediate_size: size("intermediate_size", raw.intermediate_size, limit::INTERMEDIATE)?,
        layers: size("num_hidden_layers", raw.num_hidden_layers, limit::LAYERS)?,
        heads,
        kv_heads,
        head_dim,
        context: rope_scaling.context(context),
        rms_norm_eps,
        rope_theta,
        rope_scaling,
        attention_bias: match family {
            Family::Qwen2 => true,
            Family::Qwen3 => raw.attention_bias.unwrap_or(false),
        },
        tied_embeddings: raw.tie_word_embeddings.unwrap_or(false),
    };
    refuse_sliding_windows(&raw, &config)?;
    Ok(config)
}

/// Qwen2 or Qwen3 with a language-model head; anything else is refused by its own name.
fn family(config: &Value) -> Result<Family> {
    let text = |value: &Value| value.as_str().map(|name| text::one_line(name, 80));
    let model_type = config.get("model_type").and_then(text);
    let architecture = config.get("architectures").and_then(|list| list.get(0)).and_then(text);
    let family = match (model_type.as_deref(), architecture.as_deref()) {
        (Some("qwen2") | None, Some("Qwen2ForCausalLM")) | (Some("qwen2"), None) => Some(Family::Qwen2),
        (Some("qwen3") | None, Some("Qwen3ForCausalLM")) | (Some("qwen3"), None) => Some(Family::Qwen3),
        _ => None,
    };
    family.ok_or_else(|| {
        let found = match (model_type, architecture) {
            (Some(model_type), Some(architecture)) => format!("the model is {architecture} ({model_type})"),
            (Some(name), None) | (None, Some(name)) => format!("the model is {name}"),
            (None, None) => "neither model_type nor architectures says what the model is".to_string(),
        };
        Error::failure(found).hint(RUNS)
    })
}

/// What a dense Qwen could be configured to, and finch does not run.
fn refuse_variants(raw: &Raw) -> Result<()> {
    if let Some(experts) = raw.num_experts.filter(|&n| n > 0) {
        return Err(
            Error::failure(format!("the model is a mixture of {experts} experts; finch runs dense models")).hint(RUNS)
        );
    }
    if let Some(settings) = &raw.quantization_config {
        let method = settings.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method");
        return Err(Error::failure(format!("the weights are quantised with {}", text::one_line(method, 60)))
            .hint("use the original folder with F32, F16 or BF16 weights"));
    }
    if let Some(act) = raw.hidden_act.as_deref().filter(|&act| act != "silu") {
        return Err(Error::failure(format!("hidden_act is {}; finch runs silu", text::one_line(act, 60))).hint(RUNS));
    }
    if raw.use_mrope == Some(true) {
        return Err(Error::failure("use_mrope is true; finch runs models of text alone").hint(RUNS));
    }
    Ok(())
}

/// θ and its scaling, from the old spelling (`rope_theta`, `rope_scaling`) or the new one (`rope_parameters`).
fn rope(raw: &Raw, context: usize) -> Result<(f64, RopeScaling)> {
    let mut factor = raw.partial_rotary_factor;
    let mut theta = raw.rope_theta;
    let mut scaling = None;
    for (key, settings) in [("rope_parameters", &raw.rope_parameters), ("rope_scaling", &raw.rope_scaling)] {
        let Some(settings) = settings else { continue };
        let Value::Object(settings) = settings else {
            return Err(Error::failure(format!(
                "{key} is {}, not an object",
                text::one_line(&settings.to_string(), 60)
            )));
        };
        if let Some((layers, _)) = settings.iter().find(|(_, value)| value.is_object()) {
            return Err(Error::failure(format!("{key} sets {} apart", text::one_line(layers, 60)))
                .hint("finch runs models with the same rotary embeddings in every layer"));
        }
        let found = RopeScaling::from_json(settings, context).context(key)?;
        if scaling.is_some_and(|other| other != found) {
            return Err(Error::failure("rope_parameters and rope_scaling differ"));
        }
        scaling = Some(found);
        if let Some(found) = settings.get("rope_theta") {
            match (found.as_f64(), theta) {
                (None, _) => return Err(Error::failure(format!("{key}: rope_theta is {found}, not a number"))),
                (Some(new), Some(old)) if new != old => {
                    return Err(Error::failure(format!("rope_theta is {old}, and {new} in {key}")));
                }
                (found, _) => theta = found,
            }
        }
        factor = factor.or_else(|| settings.get("partial_rotary_factor").and_then(Value::as_f64));
    }
    if let Some(factor) = factor.filter(|&factor| factor != 1.0) {
        return Err(Error::failure(format!("partial_rotary_factor is {factor}; finch rotates whole heads")).hint(RUNS));
    }
    let theta = theta.unwrap_or(10_000.0); // transformers' default
    if (1.0..=limit::ROPE_THETA).contains(&theta) {
        Ok((theta, scaling.unwrap_or(RopeScaling::None)))
    } else {
        Err(Error::failure(format!("rope_theta is {}, outside 1 to {:e}", text::number(theta), limit::ROPE_THETA)))
    }
}

/// Every layer must see the whole context.
fn refuse_sliding_windows(raw: &Raw, config: &ModelConfig) -> Result<()> {
    let refuse = |what: String| Err(Error::failure(what).hint("finch runs models with full attention in every layer"));
    if let Some(types) = &raw.layer_types {
        if types.len() != config.layers {
            return Err(Error::failure(format!(
                "layer_types has {} entries for {} layers",
                types.len(),
                config.layers
            )));
        }
        if let Some((layer, kind)) = types.iter().enumerate().find(|(_, kind)| *kind != "full_attention") {
            return refuse(format!("layer {layer} is of type {}", text::one_line(kind, 60)));
        }
        return Ok(());
    }
    // Without layer_types the layers from max_window_layers on slide (transformers' default: 28).
    let slides = raw.max_window_layers.unwrap_or(28) < config.layers as u64;
    match raw.sliding_window {
        Some(window) if raw.use_sliding_window == Some(true) && slides && window < config.context as u64 => {
            refuse(format!("use_sliding_window is on, with a window of {window} tokens"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn qwen3() -> Value {
        json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 608, "hidden_size": 64,
            "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
            "hidden_act": "silu", "rope_theta": 1e6, "rope_scaling": null})
    }

    fn read(value: &Value) -> Result<ModelConfig> {
        ModelConfig::from_json(value.to_string().as_bytes())
    }

    fn with(key: &str, value: Value) -> Value {
        let mut config = qwen3();
        config[key] = value;
        config
    }

    fn without(key: &str) -> Value {
        let mut config = qwen3();
        config.as_object_mut().unwrap().remove(key);
        config
    }

    #[test]
    fn reads_old_and_new_spellings_alike() {
        let old = read(&qwen3()).unwrap();
        assert_eq!((old.family, old.head_dim, old.rope_theta), (Family::Qwen3, 32, 1e6));
        assert!(old.tied_embeddings && !old.attention_bias);
        let mut new = without("rope_theta");
        new["rope_parameters"] = json!({"rope_theta": 1e6, "rope_type": "default"});
        assert_eq!(read(&new).unwrap(), old);
        let stretch = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096});
        let old = read(&with("rope_scaling", stretch)).unwrap();
        new["rope_parameters"] = json!({"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0});
        assert_eq!((read(&new).unwrap(), old.context), (old, 16_384));
    }

    /// The keys of Qwen2.5-Coder-32B-Instruct's, QwQ-32B's and Qwen1.5-0.5B-Chat's files.
    #[test]
    fn reads_the_settings_of_qwens_folders() {
        let coder = json!({"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
            "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
            "intermediate_size": 27648, "max_position_embeddings": 32768, "max_window_layers": 70, "model_type": "qwen2",
            "num_attention_heads": 40, "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
            "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
            "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
            "transformers_version": "4.43.1", "use_cache": true, "use_sliding_window": false, "vocab_size": 152064});
        let config = read(&coder).unwrap();
        assert_eq!((config.context, config.head_dim, config.tied_embeddings), (131_072, 128, false));
        assert!(matches!(config.rope_scaling, RopeScaling::Yarn(_)));
        let qwq = json!({"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 5120,
            "intermediate_size": 27648, "max_position_embeddings": 40960, "max_window_layers": 64, "model_type": "qwen2",
            "num_attention_heads": 40, "num_hidden_layers": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": false, "dtype": "bfloat16",
            "use_cache": true, "use_sliding_window": false, "vocab_size": 152064});
        let config = read(&qwq).unwrap();
        assert_eq!((config.context, config.rope_scaling), (40_960, RopeScaling::None));
        let old = json!({"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 1024,
            "intermediate_size": 2816, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
            "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 16, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "use_sliding_window": false,
            "vocab_size": 151936});
        assert!(read(&old).unwrap().tied_embeddings);
        let mut million = qwq.clone();
        million["max_position_embeddings"] = json!(1_010_000);
        million["dual_chunk_attention_config"] =
            json!({"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144});
        assert_eq!(read(&million).unwrap().context, 262_144, "Qwen2.5-14B-Instruct-1M's");
        let mut new = qwq;
        new["rope_theta"] = Value::Null;
        new["layer_types"] = json!(vec!["full_attention"; 64]);
        new["sliding_window"] = Value::Null;
        new["rope_parameters"] = json!({"rope_theta": 1000000.0, "rope_type": "default"});
        assert_eq!(read(&new).unwrap(), config, "as transformers 5 writes it");
    }

    #[test]
    fn fills_in_what_each_family_leaves_out() {
        let mut qwen2 = without("head_dim");
        assert_eq!(read(&qwen2).unwrap().head_dim, 128);
        qwen2["model_type"] = json!("qwen2");
        qwen2["architectures"] = json!(["Qwen2ForCausalLM"]);
        let config = read(&qwen2).unwrap();
        assert_eq!((config.family, config.head_dim, config.attention_bias), (Family::Qwen2, 16, true));
        // As Qwen2's own folders have it: a window that is switched off.
        qwen2["use_sliding_window"] = json!(false);
        qwen2["sliding_window"] = json!(128);
        assert!(read(&qwen2).is_ok());
    }

    #[test]
    fn refuses_by_name_what_it_does_not_run() {
        let scaled = json!({"type": "dynamic", "factor": 4.0});
        let cases = [
            (json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}), "LlamaForCausalLM (llama)"),
            (json!({"model_type": "qwen3_moe"}), "the model is qwen3_moe"),
            (
                json!({"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"]}),
                "Qwen2MoeForCausalLM (qwen2_moe)",
            ),
            (json!({"model_type": "qwen3_next"}), "the model is qwen3_next"),
            (json!({"model_type": "x".repeat(100_000)}), "xxx…"),
            (json!({"model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"]}), "Qwen2ForSequence"),
            (json!({}), "neither model_type nor architectures"),
            (with("num_experts", json!(8)), "8 experts"),
            (with("rope_scaling", scaled.clone()), "rope_scaling: rope_type is dynamic"),
            (with("rope_parameters", json!({"rope_type": "linear"})), "rope_parameters: factor is missing"),
            (with("rope_parameters", json!({"rope_theta": 5.0})), "rope_theta is 1000000, and 5 in rope_parameters"),
            (with("rope_parameters", json!({"full_attention": {}})), "rope_parameters sets full_attention apart"),
            (with("rope_parameters", json!([1])), "rope_parameters is [1], not an object"),
            (with("partial_rotary_factor", json!(0.5)), "partial_rotary_factor is 0.5"),
            (
                with("layer_types", json!(["full_attention", "sliding_attention", "full_attention"])),
                "layer 1 is of type sli",
            ),
            (with("layer_types", json!(["full_attention"])), "1 entries for 3 layers"),
            (with("quantization_config", json!({"quant_method": "awq"})), "quantised with awq"),
            (with("hidden_act", json!("gelu")), "hidden_act is gelu"),
            (with("use_mrope", json!(true)), "use_mrope is true"),
        ];
        for (config, expected) in cases {
            let error = read(&config).expect_err(expected).to_string();
            assert!(error.contains(expected) && error.len() < 300, "{error}");
            assert!(error.starts_with("config.json: "), "{error}");
        }
        let mut window = with("use_sliding_window", json!(true));
        window["sliding_window"] = json!(128);
        window["max_window_layers"] = json!(3);
        assert!(read(&window).is_ok(), "no layer of three is left to slide");
        window["max_window_layers"] = json!(2);
        assert!(read(&window).unwrap_err().to_string().contains("window of 128 tokens"));
    }

    #[test]
    fn refuses_numbers_outside_sane_bounds() {
        let cases = [
            ("vocab_size", json!(0)),
            ("vocab_size", json!(1u64 << 40)),
            ("hidden_size", json!(u64::MAX)),
            ("intermediate_size", json!(-1)),
            ("num_hidden_layers", json!(100_000)),
            ("num_hidden_layers", json!(2.5)),
            ("num_attention_heads", json!(0)),
            ("num_key_value_heads", json!(3)),
            ("num_key_value_heads", json!(8)),
            ("head_dim", json!(31)),
            ("head_dim", json!(0)),
            ("max_position_embeddings", json!(0)),
            ("rms_norm_eps", json!(0.0)),
            ("rms_norm_eps", json!(-1e-6)),
            ("rope_theta", json!(0.0)),
            ("rope_theta", json!(1e300)),
            ("tie_word_embeddings", json!("yes")),
        ];
        for (key, value) in cases {
            assert!(read(&with(key, value.clone())).is_err(), "{key}: {value}");
        }
        assert!(read(&without("vocab_size")).unwrap_err().to_string().contains("vocab_size"));
        assert!(ModelConfig::from_json(b"{").is_err());
    }
}
