//! The kinds of feedback: their names, their values in −1…+1 and the weight each has in training.

/// The settings of `[feedback]` that the rules need; weights are positive and finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeedbackConfig {
    pub critical_weight: f64,
    pub medium_weight: f64,
    pub good_weight: f64,
    /// Most examples that the buffer holds.
    pub buffer_capacity: usize,
    /// New trainable examples that start a training.
    pub threshold: usize,
}

impl Default for FeedbackConfig {
    fn default() -> Self {
        FeedbackConfig {
            critical_weight: 10.0,
            medium_weight: 3.0,
            good_weight: 1.0,
            buffer_capacity: 100,
            threshold: 10,
        }
    }
}

/// A rating of one to five stars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stars(u8);

impl Stars {
    /// `None` unless `count` is 1 to 5.
    pub fn new(count: u8) -> Option<Stars> {
        (1..=5).contains(&count).then_some(Stars(count))
    }

    pub fn count(self) -> u8 {
        self.0
    }

    /// The nearest number of stars for a value in −1…+1 (the inverse of [`Kind::value`]).
    pub fn from_value(value: f64) -> Stars {
        // The clamp makes the cast exact; NaN clamps to NaN and casts to 0, so it is lifted to 1.
        Stars(((value * 2.0 + 3.0).round().clamp(1.0, 5.0) as u8).max(1))
    }
}

/// One kind of signal about an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Critical,
    Medium,
    Good,
    ThumbsUp,
    ThumbsDown,
    Rating(Stars),
    /// The user typed the better answer.
    Correction,
    /// The implicit signals: observed, not said. They are counted, and teach nothing by themselves.
    Copy,
    Retry,
    FollowUp,
    Interrupted,
    ReadingTime,
}

impl Kind {
    /// The name in the store and in exported files.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Critical => "critical",
            Kind::Medium => "medium",
            Kind::Good => "good",
            Kind::ThumbsUp => "thumbs_up",
            Kind::ThumbsDown => "thumbs_down",
            Kind::Rating(_) => "rating",
            Kind::Correction => "correction",
            Kind::Copy => "copy",
            Kind::Retry => "retry",
            Kind::FollowUp => "follow_up",
            Kind::Interrupted => "interrupted",
            Kind::ReadingTime => "reading_time",
        }
    }

    /// The kind that [`name`](Kind::name) and the stored value stand for (the value tells the stars of a rating).
    pub fn from_name(name: &str, value: f64) -> Option<Kind> {
        Some(match name {
            "rating" => Kind::Rating(Stars::from_value(value)),
            "correction" => Kind::Correction,
            "copy" => Kind::Copy,
            "retry" => Kind::Retry,
            "follow_up" => Kind::FollowUp,
            "interrupted" => Kind::Interrupted,
            "reading_time" => Kind::ReadingTime,
            word => return Kind::parse(word),
        })
    }

    /// The judgement that a user's word or sign stands for: `critical`, `high`, `medium`, `good`, `normal`, `thumbs_up`,
    /// `up`, `+1`, 👍 in any skin tone, and the same downwards. Stars and corrections need more than a word.
    pub fn parse(word: &str) -> Option<Kind> {
        let plain: String = word.trim().chars().filter(|c| !is_emoji_modifier(*c)).collect();
        Some(match plain.to_ascii_lowercase().as_str() {
            "critical" | "high" => Kind::Critical,
            "medium" => Kind::Medium,
            "good" | "normal" => Kind::Good,
            "thumbs_up" | "up" | "+1" | "👍" => Kind::ThumbsUp,
            "thumbs_down" | "down" | "-1" | "👎" => Kind::ThumbsDown,
            _ => return None,
        })
    }

    /// −1 (wrong) to +1 (right); stars give (s − 3)/2.
    pub fn value(self) -> f64 {
        match self {
            Kind::Critical | Kind::ThumbsDown | Kind::Correction => -1.0,
            Kind::Medium => -0.5,
            Kind::Good | Kind::ThumbsUp => 1.0,
            Kind::Rating(stars) => (f64::from(stars.count()) - 3.0) / 2.0,
            Kind::Copy => 0.5,
            Kind::FollowUp => 0.25,
            Kind::ReadingTime => 0.0,
            Kind::Retry | Kind::Interrupted => -0.5,
        }
    }

    /// How much a signal of this kind counts in training. A thumb counts as a plain `good` either way, 4 and 2 stars
    /// half of it, 3 stars nothing; a correction as much as a critical note; an implicit signal never more than ½.
    pub fn weight(self, config: &FeedbackConfig) -> f64 {
        match self {
            Kind::Critical | Kind::Correction => config.critical_weight,
            Kind::Medium => config.medium_weight,
            Kind::Good | Kind::ThumbsUp | Kind::ThumbsDown => config.good_weight,
            Kind::Rating(_) => config.good_weight * self.value().abs(),
            Kind::Copy | Kind::Retry | Kind::FollowUp | Kind::Interrupted | Kind::ReadingTime => {
                (config.good_weight * self.value().abs()).min(0.5)
            }
        }
    }

    /// One sign for lists and acknowledgements; every one is two columns wide.
    pub fn badge(self) -> &'static str {
        match self {
            Kind::Critical => "🔴",
            Kind::Medium => "🟡",
            Kind::Good => "🟢",
            Kind::ThumbsUp => "👍",
            Kind::ThumbsDown => "👎",
            Kind::Rating(_) => "⭐",
            Kind::Correction => "📝",
            Kind::Copy | Kind::Retry | Kind::FollowUp | Kind::Interrupted | Kind::ReadingTime => "👣",
        }
    }

    /// A rating of the answer as it stands; an answer has at most one in force.
    pub fn is_judgement(self) -> bool {
        matches!(self, Kind::Critical | Kind::Medium | Kind::Good | Kind::ThumbsUp | Kind::ThumbsDown | Kind::Rating(_))
    }

    /// Said by the user (a judgement or a correction), not observed.
    pub fn is_explicit(self) -> bool {
        self.is_judgement() || self == Kind::Correction
    }
}

/// Skin tones, and the variation selector that asks for the coloured form.
fn is_emoji_modifier(c: char) -> bool {
    matches!(c, '\u{1F3FB}'..='\u{1F3FF}' | '\u{FE0F}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kind; 12] = [
        Kind::Critical,
        Kind::Medium,
        Kind::Good,
        Kind::ThumbsUp,
        Kind::ThumbsDown,
        Kind::Rating(Stars(4)),
        Kind::Correction,
        Kind::Copy,
        Kind::Retry,
        Kind::FollowUp,
        Kind::Interrupted,
        Kind::ReadingTime,
    ];

    #[test]
    fn every_kind_is_found_by_its_name_and_value() {
        for kind in ALL {
            assert_eq!(Kind::from_name(kind.name(), kind.value()), Some(kind));
        }
        for stars in 1..=5 {
            let kind = Kind::Rating(Stars::new(stars).unwrap());
            assert_eq!(Kind::from_name("rating", kind.value()), Some(kind));
        }
        assert_eq!(Kind::from_name("excellent", 1.0), None);
    }

    #[test]
    fn values_are_those_of_the_design() {
        assert_eq!(Kind::Critical.value(), -1.0);
        assert_eq!(Kind::Medium.value(), -0.5);
        assert_eq!(Kind::Good.value(), 1.0);
        assert_eq!(Kind::ThumbsUp.value(), 1.0);
        assert_eq!(Kind::ThumbsDown.value(), -1.0);
        let stars: Vec<f64> = (1..=5).map(|s| Kind::Rating(Stars::new(s).unwrap()).value()).collect();
        assert_eq!(stars, [-1.0, -0.5, 0.0, 0.5, 1.0]);
        assert!(ALL.iter().all(|kind| (-1.0..=1.0).contains(&kind.value())));
    }

    #[test]
    fn weights_follow_the_configuration() {
        let config =
            FeedbackConfig { critical_weight: 7.0, medium_weight: 2.0, good_weight: 1.0, ..Default::default() };
        assert_eq!(Kind::Critical.weight(&config), 7.0);
        assert_eq!(Kind::Correction.weight(&config), 7.0);
        assert_eq!(Kind::Medium.weight(&config), 2.0);
        assert_eq!(Kind::ThumbsUp.weight(&config), 1.0);
        let stars: Vec<f64> = (1..=5).map(|s| Kind::Rating(Stars::new(s).unwrap()).weight(&config)).collect();
        assert_eq!(stars, [1.0, 0.5, 0.0, 0.5, 1.0]);
        let loud = FeedbackConfig { good_weight: 50.0, ..config };
        assert!(ALL.iter().filter(|kind| !kind.is_explicit()).all(|kind| kind.weight(&loud) <= 0.5));
    }

    #[test]
    fn words_and_thumbs_of_any_skin_tone_are_read() {
        for (word, kind) in [
            ("critical", Kind::Critical),
            ("high", Kind::Critical),
            ("normal", Kind::Good),
            ("GOOD", Kind::Good),
            ("👍", Kind::ThumbsUp),
            ("👍🏽", Kind::ThumbsUp),
            ("👎🏿", Kind::ThumbsDown),
            ("👍\u{FE0F}", Kind::ThumbsUp),
            ("+1", Kind::ThumbsUp),
            ("-1", Kind::ThumbsDown),
        ] {
            assert_eq!(Kind::parse(word), Some(kind), "{word}");
        }
        for word in ["", "goods", "👍👍", "+1!", "rating", "copy"] {
            assert_eq!(Kind::parse(word), None, "{word}");
        }
    }

    #[test]
    fn stars_are_one_to_five() {
        assert!(Stars::new(0).is_none() && Stars::new(6).is_none());
        assert_eq!(Stars::from_value(-9.0).count(), 1);
        assert_eq!(Stars::from_value(9.0).count(), 5);
        assert_eq!(Stars::from_value(f64::NAN).count(), 1);
        assert_eq!(Stars::from_value(0.4).count(), 4);
    }

    #[test]
    fn badges_are_two_columns_wide() {
        for kind in ALL {
            assert_eq!(unicode_width::UnicodeWidthStr::width(kind.badge()), 2, "{}", kind.name());
        }
    }
}
