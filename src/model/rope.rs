//! Rotary embeddings: how fast each pair of numbers in a head turns with the position, and how a model is stretched over
//! contexts longer than it was trained on.
//!
//! Formulas are transformers' (`modeling_rope_utils.py`); llama.cpp computes the same from a GGUF file's keys.

use serde_json::{Map, Value};

use super::config::limit;
use crate::error::{Error, Result};
use crate::text;

/// A model's rotary embeddings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Every position as it is.
    None,
    /// Positions divided by `factor`.
    Linear { factor: f64 },
    /// YaRN (arXiv 2309.00071): slow pairs turn `factor` times slower, fast ones as before, with a ramp between.
    Yarn(Yarn),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    /// Tokens that the model was trained on before it was stretched.
    pub original_context: usize,
    /// Pairs that turn more often than this over the original context are left alone.
    pub beta_fast: f64,
    /// Pairs that turn less often than this are slowed by the whole factor.
    pub beta_slow: f64,
    /// Of cos and sin, so that scores keep their spread.
    pub attention_factor: f64,
    /// Whether the ramp begins and ends at whole pairs.
    pub truncate: bool,
}

impl Yarn {
    /// The paper's advice for everything but the factor.
    pub fn new(factor: f64, original_context: usize) -> Yarn {
        let attention_factor = Self::magnitude(factor, 1.0);
        Yarn { factor, original_context, beta_fast: 32.0, beta_slow: 1.0, attention_factor, truncate: true }
    }

    fn magnitude(factor: f64, weight: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
    }

    /// Share of the unslowed speed for pair `i` of a head of `dim` numbers, from 1 (fast) to 0 (slow).
    fn kept(&self, i: usize, dim: usize, theta: f64) -> f32 {
        let turning = |rotations: f64| {
            let period = self.original_context as f64 / (rotations * std::f64::consts::TAU);
            dim as f64 * period.ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (turning(self.beta_fast), turning(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        // Finite whatever the settings: a θ of 1 turns nothing.
        let finite = |x: f64| if x.is_nan() { 0.0 } else { x.clamp(-1e6, 1e6) };
        (low, high) = (finite(low).max(0.0), finite(high).min(dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        1.0 - ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0)
    }
}

impl RopeScaling {
    /// The inverse frequencies of a head's `head_dim / 2` pairs, and the factor of cos and sin.
    ///
    /// In f32, as transformers takes them: at thousands of positions their last bit shows.
    pub fn frequencies(&self, head_dim: usize, theta: f64) -> (Vec<f32>, f32) {
        let plain = (0..head_dim / 2).map(|i| theta.powf(-(2.0 * i as f64) / head_dim as f64) as f32);
        match self {
            RopeScaling::None => (plain.collect(), 1.0),
            RopeScaling::Linear { factor } => (plain.map(|f| f / *factor as f32).collect(), 1.0),
            RopeScaling::Yarn(yarn) => {
                let stretched = plain.enumerate().map(|(i, fast)| {
                    let kept = yarn.kept(i, head_dim, theta);
                    fast / yarn.factor as f32 * (1.0 - kept) + fast * kept
                });
                (stretched.collect(), yarn.attention_factor as f32)
            }
        }
    }

    /// The longest sequence, for a model whose configuration says `context`: YaRN as Qwen's pages describe it is switched
    /// on by a factor alone, and `context` stays that of the unstretched model.
    pub fn context(&self, context: usize) -> usize {
        match self {
            RopeScaling::Yarn(yarn) => {
                let stretched = (yarn.original_context as f64 * yarn.factor).round();
                context.max(stretched.min(limit::CONTEXT as f64) as usize)
            }
            _ => context,
        }
    }

    /// Reads the settings of `config.json` under either spelling (`rope_parameters`, `rope_scaling`), for a model of
    /// `context` tokens. Errors name the key, what it holds and what it may hold.
    pub(super) fn from_json(settings: &Map<String, Value>, context: usize) -> Result<RopeScaling> {
        let kind = ["rope_type", "type"].iter().find_map(|key| settings.get(*key).filter(|kind| !kind.is_null()));
        let number = |key: &str| match settings.get(key).filter(|value| !value.is_null()) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| {
                Error::failure(format!("{key} is {}, not a number", text::one_line(&value.to_string(), 60)))
            }),
        };
        let read = Self::read(kind.map(|kind| kind.as_str().unwrap_or("not a name")), context, str::to_string, number)?;
        match (read, settings.get("truncate")) {
            (RopeScaling::Yarn(yarn), Some(Value::Bool(truncate))) => {
                Ok(RopeScaling::Yarn(Yarn { truncate: *truncate, ..yarn }))
            }
            _ => Ok(read),
        }
    }

    /// Settings from anywhere: `number` gives them by transformers' keys, `named` says what a file calls such a key.
    pub(super) fn read(
        kind: Option<&str>,
        context: usize,
        named: impl Fn(&str) -> String,
        number: impl Fn(&str) -> Result<Option<f64>>,
    ) -> Result<RopeScaling> {
        let within = |key: &str, least: f64, most: f64| match number(key)? {
            Some(x) if !(least..=most).contains(&x) => {
                Err(Error::failure(format!("{} is {}, outside {least} to {most}", named(key), text::number(x))))
            }
            found => Ok(found),
        };
        // As transformers has it, zero is as good as nothing.
        let positive = |key: &str, most: f64| Ok::<_, Error>(within(key, 0.0, most)?.filter(|x| *x > 0.0));
        let factor = || {
            within("factor", 1.0, limit::ROPE_FACTOR)?
                .ok_or_else(|| Error::failure(format!("{} is missing", named("factor"))))
        };
        match kind {
            None | Some("default" | "none") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
            Some("yarn") => {
                let original = within("original_max_position_embeddings", 1.0, limit::CONTEXT as f64)?;
                let mut yarn = Yarn::new(factor()?, original.map_or(context, |tokens| tokens as usize));
                yarn.beta_fast = positive("beta_fast", 1e6)?.unwrap_or(yarn.beta_fast);
                yarn.beta_slow = positive("beta_slow", 1e6)?.unwrap_or(yarn.beta_slow);
                if yarn.beta_fast <= yarn.beta_slow {
                    let (fast, slow) = (named("beta_fast"), named("beta_slow"));
                    let Yarn { beta_fast, beta_slow, .. } = yarn;
                    return Err(Error::failure(format!(
                        "{fast} is {beta_fast}, not above {slow}, which is {beta_slow}"
                    )));
                }
                if let (Some(above), Some(below)) = (positive("mscale", 100.0)?, positive("mscale_all_dim", 100.0)?) {
                    yarn.attention_factor = Yarn::magnitude(yarn.factor, above) / Yarn::magnitude(yarn.factor, below);
                }
                yarn.attention_factor = within("attention_factor", 1e-3, 1e3)?.unwrap_or(yarn.attention_factor);
                Ok(RopeScaling::Yarn(yarn))
            }
            Some(other) => Err(Error::failure(format!("{} is {}", named("rope_type"), text::one_line(other, 60)))
                .hint("finch runs rope scaling of type linear and yarn")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(settings: Value) -> Result<RopeScaling> {
        RopeScaling::from_json(settings.as_object().unwrap(), 32_768)
    }

    #[test]
    fn yarn_slows_the_slow_pairs_only() {
        let yarn = RopeScaling::Yarn(Yarn::new(4.0, 32_768));
        let ((plain, one), (stretched, factor)) = (RopeScaling::None.frequencies(128, 1e6), yarn.frequencies(128, 1e6));
        assert_eq!((plain.len(), stretched.len(), one), (64, 64, 1.0));
        assert!((factor - 1.138_629_4).abs() < 1e-6, "0.1 ln 4 + 1: {factor}");
        assert_eq!((stretched[0], stretched[20]), (plain[0], plain[20]));
        assert!((stretched[63] * 4.0 - plain[63]).abs() < 1e-12);
        assert!(stretched[30] < plain[30] && stretched[30] > plain[30] / 4.0, "between");
        let (linear, factor) = RopeScaling::Linear { factor: 2.0 }.frequencies(128, 1e6);
        assert!(factor == 1.0 && linear.iter().zip(&plain).all(|(a, b)| *a == b / 2.0));
    }

    #[test]
    fn reads_what_qwen_ships() {
        let old = json!({"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"});
        let new = json!({"rope_theta": 1e6, "rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768,
            "attention_factor": null, "beta_fast": 0});
        let expected = RopeScaling::Yarn(Yarn::new(4.0, 32_768));
        assert_eq!((read(old).unwrap(), read(new).unwrap()), (expected, expected));
        assert_eq!((expected.context(32_768), expected.context(200_000)), (131_072, 200_000));
        assert_eq!(read(json!({"rope_type": "default", "rope_theta": 1e4})).unwrap(), RopeScaling::None);
        let RopeScaling::Yarn(set) =
            read(json!({"type": "yarn", "factor": 2, "attention_factor": 0.9, "beta_fast": 16,
            "beta_slow": 2, "truncate": false}))
            .unwrap()
        else {
            panic!("no yarn")
        };
        assert_eq!((set.attention_factor, set.beta_fast, set.beta_slow, set.truncate), (0.9, 16.0, 2.0, false));
        assert_eq!(set.original_context, 32_768, "the model's own");
    }

    #[test]
    fn refuses_what_it_cannot_compute() {
        for (settings, expected) in [
            (json!({"type": "dynamic", "factor": 2}), "rope_type is dynamic"),
            (json!({"type": "mrope"}), "rope_type is mrope"),
            (json!({"type": 3}), "rope_type is not a name"),
            (json!({"type": "yarn"}), "factor is missing"),
            (json!({"type": "linear", "factor": 0.5}), "factor is 0.5, outside 1 to"),
            (json!({"type": "linear", "factor": 1e300}), "outside 1 to 10000"),
            (json!({"type": "yarn", "factor": "4"}), "factor is \"4\", not a number"),
            (json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 0}), "original_max_position"),
            (json!({"type": "yarn", "factor": 4, "attention_factor": 0}), "attention_factor is 0, outside 0.001"),
            (
                json!({"type": "yarn", "factor": 4, "beta_slow": 64}),
                "beta_fast is 32, not above beta_slow, which is 64",
            ),
            (json!({"type": "yarn", "factor": 4, "beta_slow": -1}), "beta_slow is -1, outside 0"),
        ] {
            let error = read(settings).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn frequencies_are_finite_whatever_the_settings() {
        for theta in [1.0, 1.5, 1e12] {
            for original in [1, 7, 1 << 24] {
                for beta in [1e-9, 1e6] {
                    let yarn = Yarn { beta_fast: beta, beta_slow: 1e6, ..Yarn::new(1e4, original) };
                    let (all, _) = RopeScaling::Yarn(yarn).frequencies(64, theta);
                    assert!(all.iter().all(|f| f.is_finite()), "{theta} {original} {beta}: {all:?}");
                }
            }
        }
    }
}
