//! The coordinator over real rounds on a small random network.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Runtime;

use super::super::round;
use super::super::testing::House;
use super::*;
use crate::config::Auto;

/// A coordinator and what it says.
struct Desk {
    house: House,
    chat: Arc<ChatGate>,
    loaded: Arc<AtomicBool>,
    coordinator: Coordinator,
    told: UnboundedReceiver<LearnEvent>,
    runtime: Runtime,
}

impl Desk {
    fn new(house: House) -> Desk {
        let (chat, loaded) = (Arc::<ChatGate>::default(), Arc::new(AtomicBool::new(true)));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (model, theirs, ready) = (house.model.clone(), Arc::clone(&chat), Arc::clone(&loaded));
        let subject = move || {
            let subject = Subject { model: model.clone(), chat: Arc::clone(&theirs) };
            ready.load(Ordering::SeqCst).then_some(subject)
        };
        let parts = Parts {
            store: Arc::clone(&house.store),
            paths: house.paths.clone(),
            config: house.config.clone(),
            subject: Box::new(subject),
            prepare: Box::new(|_| ()),
            threads: 2,
        };
        let (coordinator, told) = Coordinator::start(parts, runtime.handle());
        Desk { house, chat, loaded, coordinator, told, runtime }
    }

    /// The next event that is no progress.
    fn next(&mut self) -> LearnEvent {
        loop {
            let next = async { tokio::time::timeout(Duration::from_secs(60), self.told.recv()).await };
            match self.runtime.block_on(next).expect("nothing was told").expect("the task has ended") {
                LearnEvent::Progress(_) => {}
                event => return event,
            }
        }
    }

    /// Asks it to consider, and waits until it has.
    fn considered(&mut self) {
        self.coordinator.consider();
        std::thread::sleep(Duration::from_millis(200));
    }

    fn is_quiet(&mut self) -> bool {
        self.considered();
        self.told.try_recv().is_err() && self.coordinator.status().is_none()
    }

    fn started(&mut self) -> (Trigger, usize) {
        match self.next() {
            LearnEvent::Started { trigger, examples, .. } => (trigger, examples),
            other => panic!("not started: {other:?}"),
        }
    }

    fn judged(&mut self) -> LearnEvent {
        assert!(matches!(self.next(), LearnEvent::Judging));
        self.next()
    }

    fn finished(&mut self) -> Receipt {
        match self.judged() {
            LearnEvent::Finished(receipt) => receipt,
            other => panic!("not finished: {other:?}"),
        }
    }
}

#[test]
fn the_threshold_starts_a_training_that_ends_live() {
    let mut desk = Desk::new(House::new());
    desk.house.praise("q1", "one");
    desk.house.correct("q2", "two");
    desk.house.praise("q3", "three");
    assert!(desk.is_quiet(), "three of four");
    desk.house.correct("q4", "four");
    desk.coordinator.nudge()();
    assert_eq!(desk.started(), (Trigger::Threshold, 4));
    let receipt = desk.finished();
    assert_eq!(desk.house.live(), Some(receipt.adapter), "live by the time that it is told");
    assert!(desk.coordinator.status().is_none());
    assert!(desk.is_quiet(), "nothing is new");
}

#[test]
fn auto_train_off_waits_to_be_asked() {
    let mut house = House::new();
    house.config.feedback.auto_train = false;
    house.fill();
    let mut desk = Desk::new(house);
    assert!(desk.is_quiet());
    desk.coordinator.train_now().unwrap();
    assert!(desk.coordinator.train_now().unwrap_err().to_string().contains("running already"));
    assert_eq!(desk.started(), (Trigger::Asked, 4));
    desk.finished();
    assert!(desk.coordinator.train_now().unwrap_err().to_string().contains("nothing new"));
    assert!(!desk.coordinator.cancel());
}

#[test]
fn without_a_model_or_examples_nothing_starts() {
    let mut desk = Desk::new(House::new());
    assert!(desk.coordinator.train_now().unwrap_err().to_string().contains("nothing to train on"));
    desk.loaded.store(false, Ordering::SeqCst);
    desk.house.fill();
    assert!(desk.is_quiet());
    assert!(desk.coordinator.train_now().unwrap_err().to_string().contains("not loaded"));
    desk.loaded.store(true, Ordering::SeqCst);
    desk.coordinator.consider();
    assert_eq!(desk.started().0, Trigger::Threshold, "met at start, by an import say: it trains after the first turn");
    desk.finished();
}

#[test]
fn a_training_gives_way_and_can_be_cancelled() {
    let house = House::new();
    house.fill();
    let mut desk = Desk::new(house);
    let answering = desk.chat.answering();
    desk.coordinator.consider();
    desk.started();
    std::thread::sleep(Duration::from_millis(100));
    assert!(matches!(desk.coordinator.status(), Some(Status { phase: Phase::Preparing, examples: Some(4), .. })));
    assert!(desk.coordinator.cancel());
    assert!(matches!(desk.next(), LearnEvent::Cancelled { examples: 4 }));
    drop(answering);
    assert_eq!((desk.house.new_examples(), desk.house.live()), (4, None));
    assert!(desk.is_quiet(), "the user has cancelled just this");
    desk.house.praise("q5", "five");
    desk.coordinator.consider();
    assert_eq!(desk.started(), (Trigger::Threshold, 5));
    desk.finished();
}

#[test]
fn a_refused_training_is_not_tried_again_before_new_examples() {
    let mut house = House::new();
    house.config.lora.training.learning_rate = Auto::Value(0.3);
    house.fill();
    let mut desk = Desk::new(house);
    desk.coordinator.consider();
    desk.started();
    let LearnEvent::Refused(receipt) = desk.judged() else { panic!("not refused") };
    assert!(!receipt.reasons.is_empty() && desk.house.live().is_none());
    assert!(desk.is_quiet());
}

#[test]
fn a_failed_training_is_told_and_not_tried_again_as_it_is() {
    let house = House::new();
    for i in 0..4 {
        house.correct(&format!("{} {i}", "long ".repeat(100)), "x");
    }
    let mut desk = Desk::new(house);
    desk.coordinator.consider();
    let LearnEvent::Failed(error) = desk.next() else { panic!("not failed") };
    assert!(error.to_string().contains("no example fits"), "{error}");
    assert!(desk.is_quiet());
    assert_eq!(desk.house.new_examples(), 4);
}

#[test]
fn another_process_that_trains_is_told_once_and_waited_for() {
    let house = House::new();
    house.fill();
    let mut desk = Desk::new(house);
    let held = round::lock(&desk.house.paths).unwrap();
    desk.coordinator.consider();
    assert!(matches!(desk.next(), LearnEvent::OtherProcessTrains(_)));
    assert!(desk.is_quiet());
    desk.coordinator.train_now().unwrap();
    assert!(matches!(desk.next(), LearnEvent::OtherProcessTrains(_)), "who asks is told");
    drop(held);
    desk.coordinator.consider();
    desk.started();
    desk.finished();
}

#[test]
fn leaving_cancels_and_leaves_the_examples_new() {
    let house = House::new();
    house.fill();
    let mut desk = Desk::new(house);
    let _answering = desk.chat.answering();
    desk.coordinator.consider();
    desk.started();
    assert!(desk.coordinator.shutdown(&CancelFlag::new()));
    assert!(desk.coordinator.status().is_none());
    assert_eq!(desk.house.new_examples(), 4);
    assert!(desk.coordinator.train_now().is_err());
}

#[test]
fn whoever_is_in_a_hurry_does_not_wait_for_the_end() {
    let house = House::new();
    house.fill();
    let mut desk = Desk::new(house);
    let _answering = desk.chat.answering();
    desk.coordinator.consider();
    desk.started();
    let hurry = CancelFlag::new();
    hurry.cancel();
    assert!(!desk.coordinator.shutdown(&hurry), "it had no time to end");
    assert!(matches!(desk.next(), LearnEvent::Cancelled { examples: 4 }), "it was told to stop all the same");
    assert_eq!((desk.house.new_examples(), desk.house.live()), (4, None));
}

#[test]
fn dropping_the_coordinator_lets_the_runtime_end() {
    let house = House::new();
    house.fill();
    let mut desk = Desk::new(house);
    let answering = desk.chat.answering(); // the training would wait for ever
    desk.coordinator.consider();
    desk.started();
    let Desk { coordinator, runtime, house, .. } = desk;
    drop(coordinator);
    drop(runtime);
    drop(answering);
    assert_eq!(house.new_examples(), 4);
}

#[test]
fn feedback_given_during_a_training_counts_after_it() {
    let mut house = House::new();
    house.config.feedback.threshold = 2;
    house.fill();
    let mut desk = Desk::new(house);
    let answering = desk.chat.answering();
    desk.coordinator.consider();
    assert_eq!(desk.started(), (Trigger::Threshold, 4));
    desk.house.praise("q5", "five");
    desk.coordinator.consider();
    desk.house.praise("q6", "six");
    desk.coordinator.consider();
    drop(answering);
    let first = desk.finished();
    assert_eq!((first.examples, desk.started()), (4, (Trigger::Threshold, 6)));
    desk.finished();
    assert!(desk.is_quiet());
}
