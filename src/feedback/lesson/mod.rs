//! Lessons: notes that act at once, as rules in the system prompt of the turns that follow.

use sha2::{Digest, Sha256};

/// Names a lesson by its words: lowercase hex of the SHA-256 of the trimmed note. An adapter lists by it what it carries.
pub fn digest(note: &str) -> String {
    Sha256::digest(note.trim().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_names_the_words_and_not_the_space_around_them() {
        assert_eq!(digest("Be brief."), digest("  Be brief.\n"));
        assert_ne!(digest("Be brief."), digest("be brief."));
        assert_eq!(digest(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
