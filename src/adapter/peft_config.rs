//! `adapter_config.json`: which layers of a base a PEFT adapter sits on, with which rank and scale.
//!
//! Keys of other PEFT versions that change nothing are ignored; a feature that would change the arithmetic is refused by
//! its name, so that no adapter is ever applied half.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::peft::{LoraSettings, scale};
use super::peft_modules::{Exceptions, InOrder, Selection};
use crate::error::{Error, Result};
use crate::json;
use crate::model::config::ModelConfig;
use crate::model::lora::{LoraModule, LoraShape, LoraWeights, Target, module_path};
use crate::text::one_line;

const MAX_RANK: usize = 1 << 14;
const MAX_ALPHA: f64 = 1e9;

/// Features that change what an adapter computes and that finch has no arithmetic for: key, what it is.
const UNSUPPORTED: [(&str, &str); 12] = [
    ("alora_invocation_tokens", "activated LoRA"),
    ("arrow_config", "Arrow routing"),
    ("enable_lora", "LoRA on a merged q-k-v layer"),
    ("fan_in_fan_out", "transposed base weights"),
    ("kasa_config", "KaSA"),
    ("layer_replication", "replicated layers"),
    ("lora_bias", "a bias on lora_B"),
    ("modules_to_save", "fully trained modules beside LoRA"),
    ("monteclora_config", "MonteCLoRA"),
    ("target_parameters", "LoRA on bare parameters"),
    ("trainable_token_indices", "trained token embeddings"),
    ("velora_config", "VeLoRA"),
];

/// Initialisations that only chose the start of A and B; the others also changed the base's weights.
const HARMLESS_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What to do with an adapter that finch has no arithmetic for.
pub(super) const REFUSED: &str = "finch reads LoRA, rsLoRA and DoRA on the linear layers of the blocks; PEFT's merge_and_unload makes a whole \
                       model of any other adapter";

/// A parsed and supported configuration, not yet laid over a base.
pub(super) struct PeftConfig {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f32,
    pub use_rslora: bool,
    pub use_dora: bool,
    selection: Selection,
    rank_pattern: Exceptions<usize>,
    alpha_pattern: Exceptions<f64>,
}

/// What has to be read in the order of the file: PEFT takes the first match.
#[derive(Deserialize)]
struct Patterns {
    #[serde(default)]
    rank_pattern: InOrder,
    #[serde(default)]
    alpha_pattern: InOrder,
}

pub(super) fn wrong(key: &str, expected: &str, value: &Value) -> Error {
    let mut shown = value.to_string();
    if shown.len() > 60 {
        shown = shown.chars().take(60).chain("…".chars()).collect();
    }
    Error::failure(format!("{key} should be {expected}, it is {shown}"))
}

/// Python's truth: null, false, 0, and empty strings, lists and objects mean that a feature is off.
pub(super) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
    }
}

impl PeftConfig {
    pub fn from_json(json: &[u8]) -> Result<PeftConfig> {
        let Value::Object(map) = json::read(json)? else {
            return Err(Error::failure("it is not a JSON object"));
        };
        refuse_unsupported(&map)?;
        let get = |key: &str| map.get(key).filter(|v| !v.is_null());
        let Patterns { rank_pattern, alpha_pattern } = json::read(json)?;
        let dropout = get("lora_dropout").map_or(Ok(0.0), |v| number("lora_dropout", v))?;
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::failure(format!("lora_dropout should be from 0 to below 1, it is {dropout}")));
        }
        Ok(PeftConfig {
            rank: rank("r", get("r").ok_or_else(|| Error::failure("r, the rank, is missing"))?)?,
            alpha: number("lora_alpha", get("lora_alpha").ok_or_else(|| Error::failure("lora_alpha is missing"))?)?,
            dropout: dropout as f32,
            use_rslora: get("use_rslora").is_some_and(is_set),
            use_dora: get("use_dora").is_some_and(is_set),
            selection: Selection::parse(&get)?,
            rank_pattern: Exceptions::parse("rank_pattern", &rank_pattern, rank)?,
            alpha_pattern: Exceptions::parse("alpha_pattern", &alpha_pattern, number)?,
        })
    }

    /// The pairs that this configuration puts on `model`.
    pub fn shapes(&self, model: &ModelConfig) -> Result<Vec<LoraShape>> {
        for other in ["lm_head", "model.embed_tokens"] {
            if self.selection.contains(other)? {
                return Err(
                    Error::failure(format!("target_modules names {other}, which finch cannot adapt")).hint(REFUSED)
                );
            }
        }
        let mut shapes = Vec::new();
        for layer in 0..model.layers {
            for target in Target::ALL {
                let path = module_path(layer, target);
                if !self.selection.contains(&path)? {
                    continue;
                }
                let rank = self.rank_pattern.of(&path)?.unwrap_or(self.rank);
                let alpha = self.alpha_pattern.of(&path)?.unwrap_or(self.alpha);
                let (in_features, out_features) = model.linear_shape(target);
                let scale = scale(alpha, rank, self.use_rslora);
                let dora = self.use_dora;
                shapes.push(LoraShape { layer, target, rank, in_features, out_features, scale, dora });
            }
        }
        if shapes.is_empty() {
            return Err(Error::failure("target_modules and the keys beside it match no linear layer of this base")
                .hint("the adapter was made for another kind of model"));
        }
        Ok(shapes)
    }
}

fn refuse_unsupported(map: &Map<String, Value>) -> Result<()> {
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    match text("peft_type") {
        Some("LORA") => {}
        Some(other) => {
            return Err(
                Error::failure(format!("peft_type {} is not supported, only LORA", quoted(other))).hint(REFUSED)
            );
        }
        None => return Err(Error::failure("peft_type is missing: this is no PEFT adapter")),
    }
    if let Some(other) = text("task_type").filter(|t| *t != "CAUSAL_LM") {
        return Err(Error::failure(format!("task_type {} is not supported, only CAUSAL_LM", quoted(other)))
            .hint("finch runs language models; an adapter for another task is of no use to it"));
    }
    if let Some(other) = text("bias").filter(|b| *b != "none") {
        return Err(Error::failure(format!("bias {} (trained biases) is not supported", quoted(other))).hint(REFUSED));
    }
    for (key, what) in UNSUPPORTED {
        if map.get(key).is_some_and(is_set) {
            return Err(Error::failure(format!("{what} ({key}) is not supported")).hint(REFUSED));
        }
    }
    // A switch of a newer PEFT most likely changes the arithmetic.
    let known = ["use_rslora", "use_dora"];
    if let Some((key, _)) = map.iter().find(|(k, v)| k.starts_with("use_") && !known.contains(&k.as_str()) && is_set(v))
    {
        return Err(Error::failure(format!("{} is not supported", one_line(key, 60))).hint(REFUSED));
    }
    if let Some(init) = text("init_lora_weights").filter(|i| !HARMLESS_INITS.contains(&i.to_lowercase().as_str())) {
        return Err(Error::failure(format!(
            "init_lora_weights {} is not supported: it changed the base's weights too",
            quoted(init)
        ))
        .hint(
            "convert the adapter to plain LoRA: PEFT's save_pretrained with path_initial_model_for_weight_conversion",
        ));
    }
    Ok(())
}

/// What a file says, short enough for an error.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", one_line(text, 60))
}

pub(super) fn index(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn rank(key: &str, value: &Value) -> Result<usize> {
    let allowed = index(value).filter(|rank| (1..=MAX_RANK).contains(rank));
    allowed.ok_or_else(|| wrong(key, &format!("a positive whole number up to {MAX_RANK}"), value))
}

fn number(key: &str, value: &Value) -> Result<f64> {
    // A larger one is infinite as f32, and nothing that it scales is finite.
    let allowed = value.as_f64().filter(|n| (0.0..=MAX_ALPHA).contains(n));
    allowed.ok_or_else(|| wrong(key, &format!("a number from 0 to {MAX_ALPHA:e}"), value))
}

/// The file's fields in order of their names, so that equal adapters give equal bytes.
#[derive(Serialize)]
struct File<'a> {
    alpha_pattern: BTreeMap<String, Value>,
    base_model_name_or_path: &'a str,
    bias: &'static str,
    fan_in_fan_out: bool,
    inference_mode: bool,
    init_lora_weights: bool,
    lora_alpha: Value,
    lora_dropout: f32,
    modules_to_save: Option<()>,
    peft_type: &'static str,
    r: usize,
    rank_pattern: BTreeMap<String, usize>,
    target_modules: Vec<String>,
    task_type: &'static str,
    use_dora: bool,
    use_rslora: bool,
}

/// The configuration that describes `weights`; what differs from `settings` goes into the patterns.
pub(super) fn to_json(weights: &LoraWeights, settings: &LoraSettings, base_name: &str) -> Result<Vec<u8>> {
    let mut rank_pattern = BTreeMap::new();
    let mut alpha_pattern = BTreeMap::new();
    for module in &weights.modules {
        let path = module.path();
        if module.rank != settings.rank {
            rank_pattern.insert(path.clone(), module.rank);
        }
        if module.scale != scale(settings.alpha, module.rank, settings.use_rslora) {
            alpha_pattern.insert(path, whole_if_possible(alpha_of(module, settings.use_rslora)));
        }
    }
    let file = File {
        alpha_pattern,
        base_model_name_or_path: base_name,
        bias: "none",
        fan_in_fan_out: false,
        inference_mode: true,
        init_lora_weights: true,
        lora_alpha: whole_if_possible(settings.alpha),
        lora_dropout: settings.dropout,
        modules_to_save: None,
        peft_type: "LORA",
        r: settings.rank,
        rank_pattern,
        target_modules: target_modules(weights, settings),
        task_type: "CAUSAL_LM",
        use_dora: settings.use_dora,
        use_rslora: settings.use_rslora,
    };
    let mut json = serde_json::to_vec_pretty(&file)?;
    json.push(b'\n');
    Ok(json)
}

/// Short names where every layer of the base has the same targets, else whole paths.
fn target_modules(weights: &LoraWeights, settings: &LoraSettings) -> Vec<String> {
    let targets: BTreeSet<Target> = weights.modules.iter().map(|m| m.target).collect();
    let layers: BTreeSet<usize> = weights.modules.iter().map(|m| m.layer).collect();
    if settings.layers.is_none() && weights.modules.len() == targets.len() * layers.len() {
        targets.iter().map(|t| t.name().to_string()).collect()
    } else {
        weights.modules.iter().map(LoraModule::path).collect()
    }
}

/// The alpha whose scale is the module's, whole where a whole one is.
pub(super) fn alpha_of(module: &LoraModule, use_rslora: bool) -> f64 {
    let rank = module.rank as f64;
    let alpha = f64::from(module.scale) * if use_rslora { rank.sqrt() } else { rank };
    if scale(alpha.round(), module.rank, use_rslora) == module.scale { alpha.round() } else { alpha }
}

fn whole_if_possible(alpha: f64) -> Value {
    if alpha.fract() == 0.0 && alpha.abs() < 1e15 { (alpha as i64).into() } else { alpha.into() }
}
