//! The gate over whole trainings on the built-in model: some spoiled as `benches/gate` does it, and a healthy one. That
//! bench is the long form: many of every kind.

#[path = "../benches/gate/runs.rs"]
mod runs;

use std::sync::Mutex;
use std::thread;

use finch::learn::round::default_threads;
use finch::model::digest::DigestCache;
use finch::model::load::{Model, ModelSource};
use runs::{Ground, Kind};

/// The most steps of a training.
const STEPS: usize = 50;
/// Those that are caught most easily.
const LEFT_OUT: [Kind; 3] = [Kind::LearningRate, Kind::Shuffled, Kind::OneRow];

#[test]
fn no_spoiled_training_goes_live_and_a_healthy_one_does() {
    let model = Model::load(&ModelSource::Builtin, &DigestCache::none()).unwrap();
    let ground = Ground::new(model, STEPS).unwrap();
    let kinds = Kind::SABOTAGED.into_iter().filter(|kind| !LEFT_OUT.contains(kind));
    let queue = Mutex::new(kinds.chain([Kind::Healthy]).collect::<Vec<_>>());
    let wrong = Mutex::new(Vec::new());
    let next = || queue.lock().unwrap().pop();
    thread::scope(|scope| {
        for _ in 0..default_threads() {
            scope.spawn(|| {
                while let Some(kind) = next() {
                    let outcome = ground.run(kind, 1).unwrap();
                    println!("{}: live {}, {} {}", kind.name(), outcome.live, outcome.why, outcome.measured);
                    if outcome.live != (kind == Kind::Healthy) {
                        wrong.lock().unwrap().push(format!("{}: {outcome:?}", kind.name()));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
