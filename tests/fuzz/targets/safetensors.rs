#![no_main]

#[path = "../../common/readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // An index is JSON from its first byte on, a file of tensors never.
    let _ = if bytes.first() == Some(&b'{') { readers::index(bytes) } else { readers::safetensors(bytes) };
});
