#![no_main]

#[path = "../../common/readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for kind in ["config", "generation", "tokenizer_config", "toml"] {
        let _ = readers::read(kind, bytes);
    }
});
