//! `finch bench` as its users start it, on the built-in model.

mod common;
#[path = "common/run.rs"]
mod run;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use finch::adapter::peft::{self, Adapter, LoraSettings};
use finch::model::digest::DigestCache;
use finch::model::load::{Base, ModelSource};
use serde_json::Value;

/// One measurement at a time: they are of the whole machine.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn json(home: &Path, arguments: &[&str]) -> Value {
    let all = [&["bench", "--model", "builtin", "--json", "--repeat", "2"], arguments].concat();
    serde_json::from_str(&run::printed(home, &all)).expect("one line of JSON")
}

#[test]
fn every_part_is_measured_and_counted() {
    let (home, _alone) = (tempfile::tempdir().unwrap(), alone());
    let report = json(home.path(), &["--threads", "2"]);
    assert_eq!(report["model"], "finch-tiny");
    assert_eq!((&report["threads"], &report["repeat"]), (&Value::from(2), &Value::from(2)));
    for (part, tokens) in [
        ("prefill", 512),
        ("decode", 64),
        ("adapter_decode", 64),
        ("draft_decode", 64),
        ("train", 1024),
        ("chat_decode", 63),
        ("beside_training_decode", 63),
    ] {
        assert_eq!(report[format!("{part}_tokens")], tokens, "{part}");
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{part}: {report}"));
        let range = &report[format!("{part}_tok_s_range")];
        let (low, median, high) = (number(&range[0]), number(&report[format!("{part}_tok_s")]), number(&range[1]));
        assert!(low > 0.0 && low <= median && median <= high, "{part}: {report}");
    }
    for key in ["load_first_token_s", "swap_s", "chat_first_token_s", "beside_training_first_token_s"] {
        assert!(report[key].as_f64().is_some_and(|s| s > 0.0 && s < 60.0), "{key}: {report}");
    }
    for key in ["adapter_decode_ratio", "draft_decode_ratio"] {
        assert!(report[key].as_f64().is_some_and(|ratio| ratio > 0.05 && ratio < 20.0), "{key}: {report}");
    }
    // Three tokens in a row are needed before a draft, again after each sixteenth, which is another; the rest can be drafted.
    let accepted = report["draft_share"].as_f64().unwrap();
    assert!((0.4..0.8).contains(&accepted), "{report}");
    // The weights alone take this much; the whole is far from a gigabyte.
    let peak = report["peak_rss_gb"].as_f64().expect("the system says it");
    assert!((0.02..1.0).contains(&peak), "{report}");
    assert!(report["load_s"].as_f64().is_some_and(|s| s > 0.0), "{report}");
}

#[test]
fn what_is_left_out_is_not_there() {
    let (home, _alone) = (tempfile::tempdir().unwrap(), alone());
    let report = json(home.path(), &["--only", "decode,prefill"]);
    assert!(report.get("decode_tok_s").is_some() && report.get("prefill_tok_s").is_some(), "{report}");
    for key in ["train_tok_s", "adapter_decode_tok_s", "swap_s", "chat_decode_tok_s", "load_first_token_s"] {
        assert!(report.get(key).is_none(), "{key}: {report}");
    }
    let ran = run::finch(home.path(), &["bench", "--model", "builtin", "--only", "speed"]);
    assert_eq!(ran.code, Some(2), "{}", ran.error);
}

/// A decode under an adapter does more work, and an adapter that does not fit is refused by the name of its tensor.
#[test]
fn adapters_are_measured_with_the_base() {
    let (home, _alone) = (tempfile::tempdir().unwrap(), alone());
    let base = Base::load(&ModelSource::Builtin, &DigestCache::none()).unwrap();
    let settings = LoraSettings::default();
    let adapter = Adapter::new(peft::init(&*base.network, &settings, 1).unwrap(), settings);
    let fitting = home.path().join("fitting");
    std::fs::create_dir(&fitting).unwrap();
    peft::write(&fitting, &adapter, "finch-tiny").unwrap();
    let fitting = fitting.to_str().unwrap();
    let report = json(home.path(), &["--only", "decode", "--adapter", fitting]);
    assert_eq!(report["adapter"], fitting);
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters/qwen2-untied-f16--lora");
    let ran = run::finch(home.path(), &["bench", "--model", "builtin", "--adapter", other.to_str().unwrap()]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.error.contains("model.layers.0."), "{}", ran.error);
}

#[test]
fn a_table_for_people() {
    let (home, _alone) = (tempfile::tempdir().unwrap(), alone());
    let ran = run::finch(home.path(), &["bench", "--model", "builtin", "--only", "decode", "--repeat", "1"]);
    assert_eq!(ran.code, Some(0), "{}", ran.error);
    let row = |name: &str| ran.out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{}", ran.out));
    assert!(row("model").ends_with("finch-tiny"));
    assert!(row("decode").contains("tokens a second (64 tokens, 1 times: "), "{}", ran.out);
    assert!(row("peak memory").ends_with("MB"), "{}", ran.out);
    assert!(!ran.out.contains("prefill") && ran.error.contains("Measuring decode…"), "{}{}", ran.out, ran.error);
}

/// With one thread no more than one core's time is used.
#[cfg(unix)]
#[test]
fn threads_bound_the_cores_that_are_used() {
    use nix::sys::resource::{UsageWho, getrusage};
    let (home, _alone) = (tempfile::tempdir().unwrap(), alone());
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        [usage.user_time(), usage.system_time()]
            .map(|t| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6)
            .iter()
            .sum::<f64>()
    };
    let (before, started) = (used(), std::time::Instant::now());
    json(home.path(), &["--threads", "1", "--only", "training"]);
    let (spent, wall) = (used() - before, started.elapsed().as_secs_f64());
    assert!(spent < 1.3 * wall, "{spent} s of processor time in {wall} s");
}
