//! The search: finch's own round with some numbers changed, measured on what it makes whatever the gate says.

use anyhow::{Context, Result, bail};
use finch::config::{Auto, Config};
use finch::learn::recipe::Recipe;
use finch::model::lora::Target;

/// One number each; the first one is what finch does.
pub const TRIALS: [&str; 31] = [
    "auto",
    "pairs=off",
    "rate=5e-4",
    "rate=2e-3",
    "batch=8",
    "stop=0.05",
    "stop=0.2",
    "settle=0",
    "settle=40",
    "steps=150",
    "steps=600",
    "replay-rows=0",
    "replay-rows=4",
    "replay-rows=16",
    "replay-weight=0.3",
    "replay-weight=3",
    "replay=rows",
    "wordings=0",
    "wordings=6",
    "wordings=24",
    "neighbours=0",
    "neighbours=1",
    "neighbours=6",
    "replay-wordings=0",
    "rank=4",
    "rank=64",
    "targets=attention",
    "targets=feed-forward",
    "targets=qv",
    "layers=0-1",
    "layers=0-3",
];

/// Settings joined by commas, such as `rate=2e-3,wordings=12`.
pub struct Trial(Vec<(String, String)>);

impl Trial {
    pub fn parse(text: &str) -> Result<Trial> {
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').with_context(|| format!("{part:?} is not KEY=VALUE"))?;
            Ok((key.to_string(), value.to_string()))
        };
        let trial = match text {
            "auto" => Trial(Vec::new()),
            _ => Trial(text.split(',').map(pair).collect::<Result<_>>()?),
        };
        for (key, value) in &trial.0 {
            if !set_config(&mut Config::default(), key, value)? && !set_recipe(&mut any_recipe(), key, value)? {
                bail!("{key:?} is no setting of the search");
            }
        }
        Ok(trial)
    }

    pub fn configure(&self, config: &mut Config) {
        for (key, value) in &self.0 {
            let _ = set_config(config, key, value); // checked by `parse`
        }
    }

    pub fn adjust(&self, recipe: &mut Recipe) {
        for (key, value) in &self.0 {
            let _ = set_recipe(recipe, key, value); // checked by `parse`
        }
    }
}

fn any_recipe() -> Recipe {
    let config = finch::model::load::ModelSource::Builtin.config();
    Recipe::resolve(&Config::default().lora, &config.expect("the built-in model has a configuration"), 1)
}

/// Whether the key is one of the configuration's.
fn set_config(config: &mut Config, key: &str, value: &str) -> Result<bool> {
    let lora = &mut config.lora;
    match key {
        "rate" => lora.training.learning_rate = Auto::Value(value.parse()?),
        "batch" => lora.training.batch_size = value.parse()?,
        "steps" => lora.training.max_steps = value.parse()?,
        "rank" => {
            lora.rank = value.parse()?;
            lora.alpha = 2.0 * lora.rank as f64;
        }
        "targets" => {
            lora.targets = match value {
                "attention" => vec![Target::Q, Target::K, Target::V, Target::O],
                "feed-forward" => vec![Target::Gate, Target::Up, Target::Down],
                "qv" => vec![Target::Q, Target::V],
                other => bail!("no targets {other:?}"),
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Whether the key is one of the recipe's.
fn set_recipe(recipe: &mut Recipe, key: &str, value: &str) -> Result<bool> {
    match key {
        "stop" => recipe.stop_at = Some(value.parse()?),
        "settle" => recipe.settle = value.parse()?,
        "replay-rows" => recipe.replay_rows = value.parse()?,
        "replay-weight" => recipe.replay_weight = value.parse()?,
        "replay" => recipe.replay_imitates = value == "rows",
        "wordings" => recipe.wordings = value.parse()?,
        "replay-wordings" => recipe.replay_wordings = value.parse()?,
        "pairs" => recipe.pairs = value == "on",
        "neighbours" => recipe.neighbours = value.parse()?,
        "layers" => {
            let (first, last) = value.split_once('-').context("layers are FIRST-LAST, counted from 0")?;
            recipe.layers = Some((first.parse()?..=last.parse()?).collect());
        }
        _ => return Ok(false),
    }
    Ok(true)
}
