//! The corpus of crafted files (`tests/fuzz/corpus`): each is read in a process of its own, which neither panics nor takes
//! much memory or time, and what finch says of it is clear.
//!
//! The files are made by `tests/common/attacks.rs`: `FINCH_WRITE_CORPUS=1 cargo test --test attacks` writes them.

#[path = "common/attacks.rs"]
mod attacks;
#[path = "common/gguf.rs"]
mod gguf;
#[path = "common/readers.rs"]
mod readers;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use attacks::Attack;

const MAX_MEGABYTES: u64 = 200;
const MAX_SECONDS: f64 = 1.0;
const MAX_ERROR: usize = 1000;
/// Which file the child reads.
const FILE: &str = "FINCH_TEST_ATTACK";

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
}

fn place(attack: &Attack) -> PathBuf {
    corpus().join(attack.kind).join(attack.name)
}

#[test]
fn the_corpus_is_what_the_builder_makes() {
    let all = attacks::all();
    if std::env::var_os("FINCH_WRITE_CORPUS").is_some() {
        let _ = fs::remove_dir_all(corpus());
        for attack in &all {
            fs::create_dir_all(corpus().join(attack.kind)).unwrap();
            fs::write(place(attack), &attack.bytes).unwrap();
        }
    }
    let mut there = BTreeSet::new();
    for kind in fs::read_dir(corpus()).unwrap() {
        there.extend(fs::read_dir(kind.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
    }
    assert_eq!(there, all.iter().map(place).collect(), "FINCH_WRITE_CORPUS=1 makes the corpus again");
    let mut size = 0;
    for attack in &all {
        let file = fs::read(place(attack)).unwrap();
        assert!(file == attack.bytes, "{}/{} differs: FINCH_WRITE_CORPUS=1 makes it again", attack.kind, attack.name);
        size += file.len();
    }
    assert!(all.len() > 150 && size < 1 << 20, "{} files, {size} bytes", all.len());
}

#[test]
fn crafted_files_are_refused_within_bounds() {
    let mut faults = Vec::new();
    for attack in attacks::all() {
        if let Err(fault) = check(&attack) {
            faults.push(format!("{}/{}: {fault}", attack.kind, attack.name));
        }
    }
    assert!(faults.is_empty(), "{} files:\n{}", faults.len(), faults.join("\n"));
}

/// Reads the file in a child and holds what it took and said against the bounds.
fn check(attack: &Attack) -> Result<(), String> {
    let mut told = run(attack)?;
    for _ in 0..2 {
        if told.seconds > MAX_SECONDS {
            told = run(attack)?; // another process may have had the cores
        }
    }
    if told.seconds > MAX_SECONDS {
        return Err(format!("took {:.1} s", told.seconds));
    }
    if told.megabytes > MAX_MEGABYTES {
        return Err(format!("took {} MB", told.megabytes));
    }
    match (&told.error, attack.fault) {
        (None, "") => Ok(()),
        (Some(error), "") => Err(format!("is refused: {error}")),
        (None, _) => Err("is read without a word".to_string()),
        (Some(error), _) if error.len() > MAX_ERROR => Err(format!("an error of {} bytes", error.len())),
        (Some(error), fault) if !error.contains(fault) => Err(format!("{fault:?} is not in {error:?}")),
        (Some(_), _) => Ok(()),
    }
}

struct Told {
    error: Option<String>,
    seconds: f64,
    megabytes: u64,
}

fn run(attack: &Attack) -> Result<Told, String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads", "1", "one_file"])
        .env(FILE, format!("{}/{}", attack.kind, attack.name))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            child.wait().unwrap();
            return Err("hangs".to_string());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let line = out.lines().find_map(|line| line.split_once("told: ")).map(|(_, json)| json);
    let Some(line) = line.filter(|_| output.status.success()) else {
        return Err(format!("{}: {}", output.status, err.chars().take(600).collect::<String>()));
    };
    let told: serde_json::Value = serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))?;
    Ok(Told {
        error: told["error"].as_str().map(str::to_string),
        seconds: told["seconds"].as_f64().unwrap(),
        megabytes: told["megabytes"].as_u64().unwrap(),
    })
}

/// The child's side of [`run`]; of itself it does nothing.
#[test]
fn one_file() {
    let Some(file) = std::env::var_os(FILE) else { return };
    let file = file.into_string().unwrap();
    let (kind, name) = file.split_once('/').unwrap();
    let attack = attacks::all().into_iter().find(|attack| (attack.kind, attack.name) == (kind, name)).unwrap();
    let start = Instant::now();
    let read = readers::read(kind, &attack.bytes);
    let seconds = start.elapsed().as_secs_f64();
    let error = read.err().map(|error| error.to_string());
    println!("\ntold: {}", serde_json::json!({"error": error, "seconds": seconds, "megabytes": peak_megabytes()}));
}

/// The most memory that this process ever held; 0 where the system does not say.
fn peak_megabytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
