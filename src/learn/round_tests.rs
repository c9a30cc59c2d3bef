//! Rounds on a small random network with a real store, registry and active pointer.

use super::super::testing::{BASE, House};
use super::*;
use crate::adapter::registry::{Registry, State};
use crate::config::{Auto, Variant};
use crate::learn::recipe::KL_REFUSE;
use crate::store::{Outcome, Run};

fn round(house: &House) -> Round<'_> {
    Round {
        store: &house.store,
        paths: &house.paths,
        config: &house.config,
        model: &house.model,
        need: 1,
        keep_interrupted: false,
        threads: 2,
        courtesy: Arc::default(),
    }
}

fn run(house: &House) -> Ended {
    round(house).run(&mut |_| {}).unwrap()
}

fn run_with_need(house: &House, need: usize) -> Ended {
    Round { need, ..round(house) }.run(&mut |_| {}).unwrap()
}

fn last_run(house: &House) -> Run {
    house.store.runs(1).unwrap().remove(0)
}

fn live(ended: Ended) -> Receipt {
    match ended {
        Ended::Live(receipt) => receipt,
        other => panic!("not live: {other:?}"),
    }
}

#[test]
fn a_round_ends_with_a_live_adapter_and_true_figures() {
    let house = House::new();
    house.fill();
    let mut events = Vec::new();
    let receipt = live(round(&house).run(&mut |e| events.push(e)).unwrap());

    assert!(matches!(events[0], Event::Started { examples: 4, .. }), "{events:?}");
    assert_eq!(events.last(), Some(&Event::Judging));
    let steps = events.iter().filter(|e| matches!(e, Event::Progress(_))).count();
    assert_eq!((steps, receipt.steps, receipt.ending), (3, 3, Ending::Complete), "three epochs of four rows");
    assert_eq!(receipt.examples, 4);
    let measured = receipt.measured.as_ref().unwrap();
    assert!(receipt.loss_after.unwrap() < receipt.loss_before && measured.kl.unwrap() < KL_REFUSE, "{receipt:?}");
    assert_eq!((measured.corrections.unwrap().1, measured.canaries.unwrap().1), (2, 20));

    assert_eq!(house.live().as_deref(), Some(receipt.adapter.as_str()));
    let entry = Registry::new(house.paths.clone()).find(&receipt.adapter).unwrap();
    let provenance = entry.provenance.unwrap();
    assert_eq!((entry.state, entry.path), (State::Ok, receipt.path.clone()));
    assert_eq!((provenance.run, provenance.examples, provenance.base.as_str()), (Some(receipt.run), 4, BASE));
    assert_eq!((provenance.loss_before, provenance.loss_after), (Some(receipt.loss_before), receipt.loss_after));
    let gate = provenance.gate.unwrap();
    assert!(gate.passed && gate.measurements["kl"].as_f64() == measured.kl);
    assert_eq!(provenance.parameters["learning_rate"], 2e-3);

    let noted = last_run(&house).result.unwrap();
    assert_eq!((noted.outcome, noted.adapter), (Outcome::Completed, Some(receipt.adapter)));
    assert_eq!((noted.loss_before, noted.loss_after), (Some(receipt.loss_before), receipt.loss_after));
    assert_eq!(noted.curve.len(), 3);
    assert_eq!(house.new_examples(), 0);
    assert_eq!(run_with_need(&house, 1), Ended::Nothing { examples: 4, new: 0 });
}

#[test]
fn nothing_happens_below_the_need() {
    let house = House::new();
    assert_eq!(run_with_need(&house, 0), Ended::Nothing { examples: 0, new: 0 });
    house.praise("q", "a");
    assert_eq!(run_with_need(&house, 2), Ended::Nothing { examples: 1, new: 1 });
    assert!(house.store.runs(9).unwrap().is_empty());
}

#[test]
fn a_second_round_keeps_the_first_adapter_for_rollback() {
    let house = House::new();
    house.fill();
    let first = live(run(&house)).adapter;
    house.correct("q5", "five");
    let second = live(run(&house));
    assert_eq!(second.examples, 5, "from the base anew, over the whole buffer");
    let active = crate::adapter::active::read(&house.paths, BASE).unwrap();
    assert_eq!((active.live, active.previous), (Some(second.adapter), Some(first)));
}

#[test]
fn a_refused_adapter_is_kept_and_not_live() {
    let mut house = House::new();
    house.config.lora.training.learning_rate = Auto::Value(0.3);
    house.fill();
    let Ended::Refused(receipt) = run(&house) else { panic!("not refused") };
    assert!(!receipt.reasons.is_empty() && receipt.path.is_dir());
    assert_eq!(house.live(), None);
    let entry = Registry::new(house.paths.clone()).find_sound(&receipt.adapter).unwrap();
    assert_eq!(entry.provenance.unwrap().gate.unwrap().reasons, receipt.reasons);
    let noted = last_run(&house).result.unwrap();
    assert_eq!((noted.outcome, noted.reason), (Outcome::Refused, Some(receipt.reasons.join("; "))));
    assert_eq!(house.new_examples(), 0, "not tried again before new ones come");
}

/// Ends the round at its `at`th step.
fn cancelled_at(house: &House, at: usize, keep_interrupted: bool) -> Ended {
    let courtesy = Arc::new(Courtesy::default());
    let round = Round { courtesy: Arc::clone(&courtesy), keep_interrupted, ..round(house) };
    let mut steps = 0;
    let ended = round.run(&mut |event| {
        steps += usize::from(matches!(event, Event::Progress(_)));
        if steps == at {
            courtesy.cancel();
        }
    });
    ended.unwrap()
}

#[test]
fn a_cancelled_round_leaves_its_examples_new_and_no_adapter() {
    let house = House::new();
    house.fill();
    assert_eq!(cancelled_at(&house, 2, false), Ended::Cancelled { examples: 4, kept: None });
    assert_eq!((house.new_examples(), house.live()), (4, None));
    assert!(Registry::new(house.paths.clone()).names().is_empty());
    assert_eq!(last_run(&house).result.unwrap().outcome, Outcome::Cancelled);
    live(run(&house));
}

#[test]
fn an_interrupted_headless_round_keeps_its_best_state_but_not_live() {
    let house = House::new();
    house.fill();
    let Ended::Cancelled { kept: Some(kept), .. } = cancelled_at(&house, 2, true) else { panic!("nothing kept") };
    assert!(kept.measured.is_none() && kept.ending == Ending::Interrupted);
    Registry::new(house.paths.clone()).find_sound(&kept.adapter).unwrap();
    assert_eq!((house.new_examples(), house.live()), (4, None));
    assert_eq!(last_run(&house).result.unwrap().adapter, Some(kept.adapter));
}

#[test]
fn one_trainer_at_a_time() {
    let house = House::new();
    house.fill();
    let held = lock(&house.paths).unwrap();
    let Ended::Busy(holder) = run(&house) else { panic!("two at once") };
    assert_eq!((holder.pid, holder.purpose.as_deref()), (Some(std::process::id()), Some("training")));
    assert!(house.store.runs(9).unwrap().is_empty());
    drop(held);
    live(run(&house));
}

#[test]
fn a_round_that_diverges_fails_and_says_so_in_the_store() {
    let mut house = House::new();
    house.config.lora.training.learning_rate = Auto::Value(1e38);
    house.config.lora.training.epochs = Auto::Value(20);
    house.fill();
    let error = round(&house).run(&mut |_| {}).unwrap_err();
    assert!(!error.is_interrupted(), "{error}");
    let noted = last_run(&house).result.unwrap();
    assert_eq!((noted.outcome, noted.reason), (Outcome::Failed, Some(error.to_string())));
    assert_eq!((house.new_examples(), house.live()), (4, None));
    assert!(Registry::new(house.paths.clone()).names().is_empty());
}

#[test]
fn rows_that_do_not_fit_are_named_and_the_others_trained() {
    let house = House::new();
    house.fill();
    house.correct(&"long ".repeat(100), "x");
    let receipt = live(run(&house));
    assert_eq!((receipt.examples, receipt.skipped.len()), (4, 1));
    assert!(receipt.skipped[0].question.starts_with("long long"));
    let only = House::new();
    only.correct(&"long ".repeat(100), "x");
    let error = round(&only).run(&mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("no example fits") && error.to_string().contains("long long"), "{error}");
    assert!(only.store.runs(9).unwrap().is_empty());
}

#[test]
fn dora_gives_the_same_file_whatever_the_number_of_threads() {
    let file = |threads| {
        let mut house = House::new();
        house.config.lora.variant = Variant::Dora;
        house.fill();
        let receipt = match (Round { threads, ..round(&house) }).run(&mut |_| {}).unwrap() {
            Ended::Live(receipt) | Ended::Refused(receipt) => receipt,
            other => panic!("not judged: {other:?}"),
        };
        assert_eq!(receipt.measured.and_then(|m| m.logit_difference), Some(0.0), "it reads back as it was trained");
        std::fs::read(receipt.path.join(peft::TENSOR_FILE)).unwrap()
    };
    assert!(file(1) == file(3));
}

#[test]
fn the_same_seed_and_data_give_the_same_file_byte_for_byte() {
    let file = |house: &House, threads| {
        let ended = Round { threads, ..round(house) }.run(&mut |event| {
            if matches!(event, Event::Progress(_)) {
                house.model.network.decoder(None).unwrap().forward(&[1, 2, 3]).unwrap(); // someone chats meanwhile
            }
        });
        std::fs::read(live(ended.unwrap()).path.join(peft::TENSOR_FILE)).unwrap()
    };
    let one = House::new();
    one.fill();
    // The same content under other ids and in another order.
    let other = House::new();
    other.correct("q4", "four");
    other.praise("q3", "three");
    other.correct("q2", "two");
    other.praise("q1", "one");
    let made = file(&one, 1);
    assert!(made == file(&other, 3));
    // An unrated prompt of the user's is replayed, so it changes the data.
    let third = House::new();
    third.fill();
    third.ask("an unrated question", "an answer");
    assert!(made != file(&third, 1));
}
