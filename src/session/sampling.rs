//! Which sampling answers: the user's settings, else the model's own, else Qwen's recommendation for the mode.

use crate::config::GenerationSection;
use crate::model::generation::GenerationConfig;
use crate::model::sampling::Sampling;

/// Settles every value by itself: flag, environment and config key (all in `set`), then the model's
/// `generation_config.json`, then the recommendation. The built-in model is greedy unless the user sets otherwise; a
/// model that thinks is never greedy unless the user says so, because it would go in circles.
pub fn choose(set: &GenerationSection, model: &GenerationConfig, builtin: bool, thinking: bool, seed: u64) -> Sampling {
    if builtin {
        return Sampling {
            temperature: set.temperature.unwrap_or(0.0),
            top_p: set.top_p.unwrap_or(1.0),
            top_k: set.top_k.unwrap_or(0),
            repetition_penalty: set.repetition_penalty.unwrap_or(1.0),
            seed,
        };
    }
    // Qwen's model cards.
    let (temperature, top_p, top_k) = if thinking { (0.6, 0.95, 20) } else { (0.7, 0.8, 20) };
    let own_temperature = model.temperature.filter(|t| !thinking || *t > 0.0);
    Sampling {
        temperature: set.temperature.or(own_temperature).unwrap_or(temperature),
        top_p: set.top_p.or(model.top_p).unwrap_or(top_p),
        top_k: set.top_k.or(model.top_k).unwrap_or(top_k),
        repetition_penalty: set.repetition_penalty.or(model.repetition_penalty).unwrap_or(1.0),
        seed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> GenerationConfig {
        GenerationConfig {
            temperature: Some(0.9),
            top_p: Some(0.5),
            top_k: Some(3),
            repetition_penalty: Some(1.1),
            ..Default::default()
        }
    }

    fn nothing() -> GenerationConfig {
        GenerationConfig::default()
    }

    /// Temperature, top-p, top-k, penalty.
    fn values(s: Sampling) -> (f64, f64, usize, f32) {
        (s.temperature, s.top_p, s.top_k, s.repetition_penalty)
    }

    #[test]
    fn the_user_wins_over_the_model_over_the_recommendation() {
        let unset = GenerationSection::default();
        assert_eq!(values(choose(&unset, &nothing(), false, false, 1)), (0.7, 0.8, 20, 1.0));
        assert_eq!(values(choose(&unset, &nothing(), false, true, 1)), (0.6, 0.95, 20, 1.0));
        assert_eq!(values(choose(&unset, &own(), false, true, 1)), (0.9, 0.5, 3, 1.1));
        let set = GenerationSection { temperature: Some(0.1), top_k: Some(0), ..Default::default() };
        assert_eq!(values(choose(&set, &own(), false, false, 1)), (0.1, 0.5, 0, 1.1), "each value by itself");
    }

    #[test]
    fn the_built_in_model_is_greedy_unless_told() {
        let unset = GenerationSection::default();
        assert_eq!(choose(&unset, &own(), true, false, 5), Sampling { seed: 5, ..Sampling::GREEDY });
        let set = GenerationSection { temperature: Some(0.8), ..Default::default() };
        assert_eq!(values(choose(&set, &own(), true, false, 1)), (0.8, 1.0, 0, 1.0));
    }

    #[test]
    fn thinking_is_greedy_only_where_the_user_says_so() {
        let greedy = GenerationConfig { temperature: Some(0.0), ..nothing() };
        let unset = GenerationSection::default();
        assert_eq!(choose(&unset, &greedy, false, true, 1).temperature, 0.6);
        assert_eq!(choose(&unset, &greedy, false, false, 1).temperature, 0.0);
        let set = GenerationSection { temperature: Some(0.0), ..Default::default() };
        assert_eq!(choose(&set, &nothing(), false, true, 1).temperature, 0.0);
    }
}
