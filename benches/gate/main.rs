//! What the gate lets through: trainings that were spoiled on purpose, and healthy ones, on the built-in model.
//!
//! ```sh
//! cargo bench --bench gate -- --sabotaged 200 --healthy 50 --steps 300 --lanes 4 --json target/gate.json
//! ```
//!
//! Prints a table; exits with 1 when a spoiled one went live, or fewer than nine in ten healthy ones did.

mod runs;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use finch::model::digest::DigestCache;
use finch::model::load::{Model, ModelSource};
use runs::{Ground, Kind, Outcome};
use serde_json::json;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let text = |flag: &str| args.iter().position(|a| a == flag).and_then(|at| args.get(at + 1));
    let number = |flag: &str, default: usize| text(flag).and_then(|value| value.parse().ok()).unwrap_or(default);
    let (sabotaged, healthy) = (number("--sabotaged", 200), number("--healthy", 50));
    let model = Model::load(&ModelSource::Builtin, &DigestCache::none()).expect("the built-in model");
    let ground = Ground::new(model, number("--steps", 300)).expect("the base's own answers");

    let spoiled = (0..sabotaged).map(|i| (Kind::SABOTAGED[i % Kind::SABOTAGED.len()], i as u64));
    let queue: Vec<(Kind, u64)> = spoiled.chain((0..healthy).map(|i| (Kind::Healthy, i as u64))).collect();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..number("--lanes", finch::learn::round::default_threads()) {
            scope.spawn(|| {
                while let Some((kind, seed)) = queue.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let started = Instant::now();
                    let outcome = ground.run(*kind, *seed).expect("a run");
                    let seconds = started.elapsed().as_secs_f64();
                    let said = if outcome.live { "live" } else { &outcome.why };
                    eprintln!("{} #{seed}: {said} ({seconds:.0} s)", kind.name());
                    results.lock().expect("no run panicked").push((*kind, *seed, outcome, seconds));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no run panicked");
    results.sort_by_key(|(kind, seed, ..)| (*kind, *seed));
    print(&results);
    let row = |(kind, seed, outcome, seconds): &(Kind, u64, Outcome, f64)| {
        json!({"kind": kind.name(), "seed": seed, "live": outcome.live, "why": outcome.why,
               "measured": outcome.measured, "seconds": seconds})
    };
    if let Some(file) = text("--json") {
        let all = serde_json::to_string_pretty(&results.iter().map(row).collect::<Vec<_>>()).expect("plain values");
        std::fs::write(file, all).expect("the file of --json");
    }
    let live = |spoiled: bool| results.iter().filter(|r| (r.0 != Kind::Healthy) == spoiled && r.2.live).count();
    let passed = live(true) == 0 && 10 * live(false) >= 9 * healthy;
    ExitCode::from(u8::from(!passed))
}

fn print(results: &[(Kind, u64, Outcome, f64)]) {
    println!("| training | runs | live | median s |\n|---|---|---|---|");
    for kind in std::iter::once(Kind::Healthy).chain(Kind::SABOTAGED) {
        let of: Vec<_> = results.iter().filter(|r| r.0 == kind).collect();
        let mut seconds: Vec<f64> = of.iter().map(|r| r.3).collect();
        seconds.sort_by(f64::total_cmp);
        let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
        let live = of.iter().filter(|r| r.2.live).count();
        println!("| {} | {} | {live} | {median:.0} |", kind.name(), of.len());
    }
}
