//! finch-tiny, the model inside the binary: the same files that a Hugging Face folder has.

/// Its name on screen and in the store.
pub const NAME: &str = "finch-tiny";

/// A file of the built-in model.
pub fn file(name: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(file, _)| *file == name).map(|(_, bytes)| *bytes)
}

const FILES: [(&str, &[u8]); 0] = [];
