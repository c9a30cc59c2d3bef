//! The words of a text, for comparing texts by what they talk about.

/// Words that say nothing about what a text is about.
const COMMON: [&str; 44] = [
    "a", "about", "an", "and", "are", "be", "can", "could", "did", "do", "does", "for", "from", "give", "have", "how",
    "i", "in", "is", "it", "me", "my", "of", "on", "one", "or", "please", "should", "tell", "that", "the", "there",
    "this", "to", "was", "what", "when", "where", "which", "who", "why", "with", "would", "you",
];

/// The runs of letters and digits, in lower case.
pub fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(String::from).collect()
}

/// Whether nearly every text may hold the word; `word` as [`words`] gives it.
pub fn is_common(word: &str) -> bool {
    COMMON.contains(&word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_letters_and_digits_in_lower_case() {
        assert_eq!(
            words("Never use `.unwrap()` — ÄRGER in Rust2024!"),
            ["never", "use", "unwrap", "ärger", "in", "rust2024"]
        );
        assert!(words(" .,!").is_empty());
        assert!(is_common("the") && !is_common("unwrap"));
    }
}
