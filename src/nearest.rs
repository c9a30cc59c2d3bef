//! "Did you mean …": the known word nearest to a mistyped one, for commands, subcommands and configuration keys.

/// The candidate that `word` most likely stands for: a few typing slips away (one in a short word, two in a longer one), or
/// the only candidate that begins with it. None where nothing is near. Case does not matter.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let slips = |candidate: &str| strsim::osa_distance(&word, &candidate.to_lowercase());
    if let Some(best) = candidates.iter().copied().min_by_key(|c| slips(c))
        && slips(best) <= allowed_slips(&word)
    {
        return Some(best);
    }
    let mut longer =
        candidates.iter().copied().filter(|c| word.chars().count() >= 3 && c.to_lowercase().starts_with(&word));
    match (longer.next(), longer.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

/// A slip is a character added, left out, replaced, or swapped with its neighbour.
fn allowed_slips(word: &str) -> usize {
    match word.chars().filter(|c| c.is_alphanumeric()).count() {
        0..=2 => 0,
        3..=4 => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [&str; 5] = ["train", "adapters", "stats", "feedback", "score"];

    #[test]
    fn slips_find_the_word_they_stand_for() {
        for (typed, meant) in [
            ("adapter", "adapters"),
            ("trian", "train"),
            ("Feedbak", "feedback"),
            ("stat", "stats"),
            ("sorce", "score"),
        ] {
            assert_eq!(nearest(typed, WORDS), Some(meant), "{typed}");
        }
    }

    #[test]
    fn a_unique_beginning_is_enough_and_an_ambiguous_one_is_not() {
        assert_eq!(nearest("adap", WORDS), Some("adapters"));
        assert_eq!(nearest("cor", ["correct", "corral"]), None);
    }

    #[test]
    fn far_words_have_no_nearest() {
        for typed in ["explain", "what", "a", "", "scarcely"] {
            assert_eq!(nearest(typed, WORDS), None, "{typed}");
        }
    }
}
