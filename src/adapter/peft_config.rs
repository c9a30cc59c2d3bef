//! `adapter_config.json`: which layers of a base a PEFT adapter sits on, with which rank and scale.
//!
//! Keys of other PEFT versions that change nothing are ignored; a feature that would change the arithmetic is refused by
//! its name, so that no adapter is ever applied half.

use std::collections::{BTreeMap, BTreeSet};

use regex::{Regex, RegexBuilder};
use serde::Serialize;
use serde_json::{Map, Value};

use super::peft::{LoraSettings, scale};
use crate::error::{Context, Error, Result};
use crate::model::config::ModelConfig;
use crate::model::lora::{LoraModule, LoraShape, LoraWeights, Target};

/// Features that change what an adapter computes and that finch has no arithmetic for: key, what it is.
const UNSUPPORTED: [(&str, &str); 13] = [
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
    ("use_dora", "DoRA"),
    ("velora_config", "VeLoRA"),
];

/// Initialisations that only chose the start of A and B; the others also changed the base's weights.
const HARMLESS_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// A parsed and supported configuration, not yet laid over a base.
pub(super) struct PeftConfig {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f32,
    pub use_rslora: bool,
    targets: Modules,
    exclude: Option<Modules>,
    layers: Option<BTreeSet<usize>>,
    rank_pattern: Vec<(String, Regex, usize)>,
    alpha_pattern: Vec<(String, Regex, f64)>,
}

/// PEFT's ways of naming modules.
enum Modules {
    AllLinear,
    /// Whole paths, or their ends after a dot.
    Names(Vec<String>),
    /// A regular expression for the whole path.
    Pattern(Regex),
}

impl Modules {
    fn parse(key: &str, value: &Value) -> Result<Modules> {
        match value {
            Value::String(s) if s.eq_ignore_ascii_case("all-linear") => Ok(Modules::AllLinear),
            Value::String(s) => Ok(Modules::Pattern(whole_match(key, s, "")?)),
            Value::Array(items) => items
                .iter()
                .map(|item| item.as_str().map(str::to_string))
                .collect::<Option<Vec<String>>>()
                .map(Modules::Names)
                .ok_or_else(|| wrong(key, "a list of module names", value)),
            other => Err(wrong(key, "a list of module names or a pattern", other)),
        }
    }

    fn contains(&self, path: &str) -> bool {
        match self {
            Modules::AllLinear => path.contains(".layers."),
            Modules::Names(names) => names.iter().any(|n| {
                path.strip_suffix(n.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }),
            Modules::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

/// `pattern` as Python's `re` would match it over a whole module path, after `prefix`.
fn whole_match(key: &str, pattern: &str, prefix: &str) -> Result<Regex> {
    let refuse = |why: String| {
        Error::failure(format!("{key}: the pattern {pattern:?} is not understood: {why}"))
            .hint("name the modules in a list, such as [\"q_proj\", \"v_proj\"]")
    };
    if pattern.len() > 4096 {
        return Err(refuse(format!("{} characters are too many", pattern.len())));
    }
    let compile = |text: &str| RegexBuilder::new(text).size_limit(1 << 20).build();
    // On its own first: parentheses that close the group around it must not pass.
    compile(pattern).and_then(|_| compile(&format!("^{prefix}(?:{pattern})$"))).map_err(|e| {
        let why = e.to_string();
        refuse(why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string())
    })
}

fn wrong(key: &str, expected: &str, value: &Value) -> Error {
    let mut shown = value.to_string();
    if shown.len() > 60 {
        shown = shown.chars().take(60).chain("…".chars()).collect();
    }
    Error::failure(format!("{key} should be {expected}, it is {shown}"))
}

/// Python's truth: null, false, 0, and empty strings, lists and objects mean that a feature is off.
fn is_set(value: &Value) -> bool {
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
        let Value::Object(map) = serde_json::from_slice(json)? else {
            return Err(Error::failure("it is not a JSON object"));
        };
        refuse_unsupported(&map)?;
        let get = |key: &str| map.get(key).filter(|v| !v.is_null());
        let targets = match get("target_modules") {
            Some(value) => Modules::parse("target_modules", value)?,
            None => Modules::Names(vec!["q_proj".into(), "v_proj".into()]), // PEFT's own default for Qwen
        };
        let layers = match get("layers_to_transform").filter(|v| is_set(v) || v.is_number()) {
            None => None,
            Some(_) if matches!(targets, Modules::Pattern(_) | Modules::AllLinear) => {
                return Err(Error::failure("layers_to_transform goes with a list of target_modules only"));
            }
            Some(Value::Array(items)) => {
                let layers = items.iter().map(index).collect::<Option<BTreeSet<usize>>>();
                Some(
                    layers
                        .ok_or_else(|| wrong("layers_to_transform", "layer numbers", &Value::Array(items.clone())))?,
                )
            }
            Some(one) => Some(BTreeSet::from([
                index(one).ok_or_else(|| wrong("layers_to_transform", "a layer number or a list of them", one))?
            ])),
        };
        let dropout = get("lora_dropout").map_or(Ok(0.0), |v| number("lora_dropout", v))?;
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::failure(format!("lora_dropout should be from 0 to below 1, it is {dropout}")));
        }
        Ok(PeftConfig {
            rank: rank("r", get("r").ok_or_else(|| Error::failure("r, the rank, is missing"))?)?,
            alpha: number("lora_alpha", get("lora_alpha").ok_or_else(|| Error::failure("lora_alpha is missing"))?)?,
            dropout: dropout as f32,
            use_rslora: get("use_rslora").is_some_and(is_set),
            targets,
            exclude: get("exclude_modules")
                .filter(|v| is_set(v))
                .map(|v| Modules::parse("exclude_modules", v))
                .transpose()?,
            layers,
            rank_pattern: patterns("rank_pattern", get("rank_pattern"), rank)?,
            alpha_pattern: patterns("alpha_pattern", get("alpha_pattern"), number)?,
        })
    }

    /// The pairs that this configuration puts on `model`.
    pub fn shapes(&self, model: &ModelConfig) -> Result<Vec<LoraShape>> {
        let chosen =
            |path: &str| self.targets.contains(path) && !self.exclude.as_ref().is_some_and(|e| e.contains(path));
        for other in ["lm_head", "model.embed_tokens"] {
            if chosen(other) {
                return Err(Error::failure(format!("target_modules names {other}, which finch cannot adapt"))
                    .hint("finch reads adapters on the seven linear layers of each block"));
            }
        }
        let mut shapes = Vec::new();
        for layer in (0..model.layers).filter(|l| self.layers.as_ref().is_none_or(|set| set.contains(l))) {
            for target in Target::ALL {
                let path = module_path(layer, target);
                if !chosen(&path) {
                    continue;
                }
                let rank = pick(&self.rank_pattern, &path).context("rank_pattern")?.unwrap_or(self.rank);
                let alpha = pick(&self.alpha_pattern, &path).context("alpha_pattern")?.unwrap_or(self.alpha);
                let (in_features, out_features) = model.linear_shape(target);
                let scale = scale(alpha, rank, self.use_rslora);
                shapes.push(LoraShape { layer, target, rank, in_features, out_features, scale });
            }
        }
        if shapes.is_empty() {
            return Err(Error::failure("target_modules matches no linear layer of this base"));
        }
        Ok(shapes)
    }
}

/// transformers' path of a linear layer, which PEFT's names and patterns are about.
fn module_path(layer: usize, target: Target) -> String {
    format!("model.layers.{layer}.{}.{}", target.block(), target.name())
}

fn refuse_unsupported(map: &Map<String, Value>) -> Result<()> {
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    match text("peft_type") {
        Some("LORA") => {}
        Some(other) => return Err(Error::failure(format!("peft_type {other:?} is not supported, only LORA"))),
        None => return Err(Error::failure("peft_type is missing: this is no PEFT adapter")),
    }
    if let Some(other) = text("task_type").filter(|t| *t != "CAUSAL_LM") {
        return Err(Error::failure(format!("task_type {other:?} is not supported, only CAUSAL_LM")));
    }
    if let Some(other) = text("bias").filter(|b| *b != "none") {
        return Err(Error::failure(format!("bias {other:?} (trained biases) is not supported")));
    }
    for (key, what) in UNSUPPORTED {
        if map.get(key).is_some_and(is_set) {
            return Err(Error::failure(format!("{what} ({key}) is not supported yet")));
        }
    }
    // A switch of a newer PEFT most likely changes the arithmetic.
    if let Some((key, _)) = map.iter().find(|(k, v)| k.starts_with("use_") && *k != "use_rslora" && is_set(v)) {
        return Err(Error::failure(format!("{key} is not supported")));
    }
    if let Some(init) = text("init_lora_weights").filter(|i| !HARMLESS_INITS.contains(&i.to_lowercase().as_str())) {
        return Err(Error::failure(format!(
            "init_lora_weights {init:?} is not supported: it changed the base's weights too"
        ))
        .hint(
            "convert the adapter to plain LoRA: PEFT's save_pretrained with path_initial_model_for_weight_conversion",
        ));
    }
    match map.get("layers_pattern").filter(|v| is_set(v)) {
        Some(other) if *other != "layers" && *other != serde_json::json!(["layers"]) => {
            Err(Error::failure(format!("layers_pattern {other} is not supported, only \"layers\"")))
        }
        _ => Ok(()),
    }
}

fn index(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn rank(key: &str, value: &Value) -> Result<usize> {
    index(value).filter(|r| *r > 0).ok_or_else(|| wrong(key, "a positive whole number", value))
}

fn number(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().filter(|n| n.is_finite() && *n >= 0.0).ok_or_else(|| wrong(key, "a number", value))
}

/// PEFT's `rank_pattern` and `alpha_pattern`: module names or patterns to values.
fn patterns<T>(
    key: &str,
    value: Option<&Value>,
    parse: impl Fn(&str, &Value) -> Result<T>,
) -> Result<Vec<(String, Regex, T)>> {
    let map = match value {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong(key, "an object", other)),
    };
    map.iter()
        .map(|(name, v)| {
            Ok((name.clone(), whole_match(key, name, r"(?:.*\.)?")?, parse(&format!("{key}: {name}"), v)?))
        })
        .collect()
}

/// The value for `path`; PEFT takes the first match in the file's order, so matches that differ are refused.
fn pick<T: Copy + PartialEq>(patterns: &[(String, Regex, T)], path: &str) -> Result<Option<T>> {
    let mut matches = patterns.iter().filter(|(_, pattern, _)| pattern.is_match(path));
    let Some((name, _, value)) = matches.next() else { return Ok(None) };
    match matches.find(|(_, _, other)| other != value) {
        Some((other, _, _)) => Err(Error::failure(format!("{name:?} and {other:?} both match {path} and differ"))),
        None => Ok(Some(*value)),
    }
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
        let path = module_path(module.layer, module.target);
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
        use_dora: false,
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
        weights.modules.iter().map(|m| module_path(m.layer, m.target)).collect()
    }
}

/// The alpha whose scale is the module's, whole where a whole one is.
fn alpha_of(module: &LoraModule, use_rslora: bool) -> f64 {
    let rank = module.rank as f64;
    let alpha = f64::from(module.scale) * if use_rslora { rank.sqrt() } else { rank };
    if scale(alpha.round(), module.rank, use_rslora) == module.scale { alpha.round() } else { alpha }
}

fn whole_if_possible(alpha: f64) -> Value {
    if alpha.fract() == 0.0 && alpha.abs() < 1e15 { (alpha as i64).into() } else { alpha.into() }
}
