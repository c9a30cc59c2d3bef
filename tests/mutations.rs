//! Sound files of every kind, damaged at random: bit flips, cuts, fields set to the values that break readers. None makes
//! finch panic or take much memory, and none disturbs a chat that runs beside.
//!
//! A few of each kind run on every change. The long form: `FINCH_MUTATIONS=1000 cargo test --release --test mutations`.

#[path = "common/attacks.rs"]
mod attacks;
#[path = "common/gguf.rs"]
mod gguf;
#[path = "common/readers.rs"]
mod readers;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use finch::model::digest::DigestCache;
use finch::model::load::{Model, ModelSource};
use finch::model::message::Message;
use finch::store::Store;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"];

fn fixture(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(part)
}

/// Sound files by kind.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let model = fixture("models/qwen3-tied-bf16");
    let read = |name: &str| fs::read(model.join(name)).unwrap();
    let sound = |kind: &str| {
        let mut all = attacks::all().into_iter();
        all.find(|attack| attack.kind == kind && attack.name == "sound").expect("a sound file").bytes
    };
    vec![
        ("gguf", sound("gguf")),
        ("gguf", attacks::quantised_gguf([(14, 210), (12, 144)]).bytes()),
        ("gguf", fs::read(fixture("gguf/qwen3-tied-bf16-BF16.gguf")).unwrap()),
        ("safetensors", read("model.safetensors")),
        ("index", sound("index")),
        ("tokenizer", read("tokenizer.json")),
        ("tokenizer", sound("tokenizer")),
        ("adapter", sound("adapter")),
        ("template", read("chat_template.jinja")),
        ("config", read("config.json")),
        ("generation", read("generation_config.json")),
        ("tokenizer_config", sound("tokenizer_config")),
        ("toml", b"[generation]\nmax_tokens = 64\n[lora]\nrank = 8\ntargets = [\"q_proj\"]\n".to_vec()),
        ("database", database()),
    ]
}

fn database() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("finch.db");
    drop(Store::open(&path).unwrap());
    fs::read(path).unwrap()
}

fn count() -> usize {
    std::env::var("FINCH_MUTATIONS").map_or(40, |count| count.parse().expect("FINCH_MUTATIONS is a number"))
}

/// Values that break readers, as a number of eight bytes and as digits.
const EXTREME: [u64; 12] =
    [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 40, i64::MAX as u64, 1 << 63, u64::MAX];

/// One to four changes.
fn mutated(seed: &[u8], rng: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        // What decides stands at the beginning more often than not.
        let end = if rng.random_range(0..2) == 0 { bytes.len() } else { bytes.len().min(600) };
        let at = rng.random_range(0..end);
        match rng.random_range(0..7) {
            0 | 1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 => bytes.truncate(at),
            3 => {
                let value = EXTREME[rng.random_range(0..EXTREME.len())].to_le_bytes();
                let width = [1, 2, 4, 8][rng.random_range(0..4)];
                value[..width].iter().zip(&mut bytes[at..]).for_each(|(new, old)| *old = *new);
            }
            4 => {
                // The digits of a number.
                let Some(start) = (at..bytes.len()).find(|&i| bytes[i].is_ascii_digit()) else { continue };
                let end = (start..bytes.len()).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(bytes.len());
                let value = EXTREME[rng.random_range(0..EXTREME.len())];
                let digits = if rng.random_range(0..4) == 0 { format!("-{value}") } else { value.to_string() };
                bytes.splice(start..end, digits.into_bytes());
            }
            5 => {
                let to = (at + rng.random_range(1..64usize)).min(bytes.len());
                let copy = bytes[at..to].to_vec();
                let place = rng.random_range(0..=bytes.len());
                bytes.splice(place..place, copy);
            }
            _ => {
                let to = (at + rng.random_range(1..64usize)).min(bytes.len());
                bytes.drain(at..to);
            }
        }
    }
    bytes
}

#[test]
fn damaged_files_neither_panic_nor_disturb_a_running_chat() {
    let source = ModelSource::resolve(fixture("models/qwen2-untied-f16").to_str().unwrap()).unwrap();
    let model = Model::load(&source, &DigestCache::none()).unwrap();
    let prompt = model.template.encode(&model.tokenizer, &[Message::user("the finch")], true, None).unwrap();
    let answer = || -> Vec<u32> {
        let mut decoder = model.network.decoder(None).unwrap();
        let mut bits = Vec::new();
        let mut ids = prompt.clone();
        for _ in 0..6 {
            let logits = decoder.forward(&ids).unwrap();
            bits.extend(logits.iter().map(|value| value.to_bits()));
            let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            ids = vec![best as u32];
        }
        bits
    };
    let before = answer();
    let (done, turns) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let chat = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) || turns.load(Ordering::Relaxed) == 0 {
                assert!(answer() == before, "the chat's logits changed");
                turns.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        read_damaged();
        load_damaged();
        done.store(true, Ordering::Relaxed);
        chat.join().unwrap();
    });
    assert!(answer() == before, "the chat's logits changed");
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(str::trim).unwrap_or("unknown");
    eprintln!("{} turns beside, peak memory {peak}", turns.load(Ordering::Relaxed));
    let kilobytes: u64 = peak.trim_end_matches(" kB").parse().unwrap_or(0);
    assert!(kilobytes < 400 << 10, "{peak}: 200 MB for a file and as much for the chat and the rest");
}

/// Each kind's reader on damaged files; most of them are refused.
fn read_damaged() {
    for (at, (kind, seed)) in seeds().into_iter().enumerate() {
        readers::read(kind, &seed).unwrap_or_else(|e| panic!("the sound {kind} is refused: {e}"));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(at as u64);
        let (mut refused, mut slowest) = (0, Duration::ZERO);
        for number in 0..count() {
            let bytes = mutated(&seed, &mut rng);
            let start = Instant::now();
            let read = std::panic::catch_unwind(|| readers::read(kind, &bytes));
            let read = read.unwrap_or_else(|_| panic!("{kind}, mutation {number}, panics"));
            slowest = slowest.max(start.elapsed());
            if let Err(error) = read {
                refused += 1;
                assert!(error.message().len() < 2000, "{kind}, mutation {number}: {} bytes", error.message().len());
            }
        }
        eprintln!("{kind}: {refused} of {} refused, the slowest in {slowest:?}", count());
        assert!(slowest < Duration::from_secs(5), "{kind}: {slowest:?}");
        assert!(refused > 0, "{kind}");
    }
}

/// Whole model folders with one damaged file: those that load also answer.
fn load_damaged() {
    let sound = fixture("models/qwen3-tied-bf16");
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(99);
    let mut loaded = 0;
    for number in 0..count() {
        let folder = tempfile::tempdir().unwrap();
        let damaged = FILES[number % FILES.len()];
        for file in FILES {
            let bytes = fs::read(sound.join(file)).unwrap();
            let bytes = if file == damaged { mutated(&bytes, &mut rng) } else { bytes };
            fs::write(folder.path().join(file), bytes).unwrap();
        }
        let source = ModelSource::resolve(folder.path().to_str().unwrap()).unwrap();
        let Ok(model) = Model::load(&source, &DigestCache::none()) else { continue };
        loaded += 1;
        let Ok(ids) = model.template.encode(&model.tokenizer, &[Message::user("hi there")], true, None) else {
            continue;
        };
        let ids: Vec<u32> = ids.into_iter().take(8).collect();
        if !ids.is_empty() {
            let _ = model.network.decoder(None).unwrap().forward(&ids);
        }
    }
    eprintln!("folders: {loaded} of {} loaded", count());
}
