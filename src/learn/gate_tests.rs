//! The gate on a small random network.

use super::super::canaries::{WATCHED, answer, conversation};
use super::super::testing;
use super::*;
use crate::adapter::peft::{Adapter, LoraSettings};
use crate::feedback::Example;
use crate::feedback::example::Origin;
use crate::learn::compliance;
use crate::train::lanes::Lanes;

/// An adapter whose B is `size` times random; 0 is the base.
fn weights(model: &Model, size: f32) -> LoraWeights {
    let settings = LoraSettings { rank: 4, alpha: 8.0, ..LoraSettings::default() };
    let network = model.network.as_ref();
    let mut weights = peft::init(network, &settings, 1).unwrap();
    let other = peft::init(network, &settings, 2).unwrap();
    for m in &weights.modules {
        for (i, at) in m.b.clone().enumerate() {
            weights.data[at] = size * other.data[m.a.start + i % m.a.len()];
        }
    }
    weights
}

fn save(weights: &LoraWeights) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let settings = LoraSettings { rank: 4, alpha: 8.0, ..LoraSettings::default() };
    peft::write(folder.path(), &Adapter::new(weights.clone(), settings), "random").unwrap();
    folder
}

struct Case {
    model: Model,
    watched: Vec<Answered>,
    held_out: Vec<Unseen>,
    checks: Vec<Check>,
}

impl Case {
    fn new() -> Case {
        let model = testing::model(5);
        let prompts: Vec<_> = WATCHED[..4].iter().map(|p| conversation(p)).collect();
        let watched =
            answer(&model, &prompts, answer_tokens(model.network.config()), &Lanes::shared(64), &Courtesy::default())
                .unwrap();
        Case { model, watched, held_out: Vec::new(), checks: Vec::new() }
    }

    fn inspect(&self, trained: &LoraWeights, folder: &Path, loss: (f64, f64)) -> Report {
        let evidence = Evidence {
            loss,
            held_out: &self.held_out,
            corrections: Some((&self.model, &self.checks)),
            watched: &self.watched,
            ends: &self.model.generation.eos,
            live: None,
        };
        inspect(self.model.network.as_ref(), folder, trained, &evidence, 2, &Arc::default()).unwrap()
    }
}

#[test]
fn a_small_change_that_helps_passes() {
    let case = Case::new();
    let trained = weights(&case.model, 0.02);
    let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
    assert!(report.passed(), "{report:?}");
    assert_eq!(report.measured.logit_difference, Some(0.0));
    let kl = report.measured.kl.unwrap();
    assert!(kl > 0.0 && kl < KL_WARN && report.measured.kl_worst.unwrap() >= kl, "{report:?}");
    assert_eq!(report.measured.canaries.unwrap().1, 4);
    let stored = report.provenance().unwrap();
    assert!(stored.passed && stored.measurements["kl"].as_f64() == Some(kl));
    assert!(stored.measurements.get("held_out").is_none(), "what was not measured is absent");
}

#[test]
fn the_base_itself_diverges_by_nothing() {
    let case = Case::new();
    let trained = weights(&case.model, 0.0);
    let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
    assert!(report.measured.kl.unwrap().abs() < 1e-6, "{report:?}");
    assert_eq!(report.measured.canaries, Some((4, 4)));
}

#[test]
fn a_large_change_is_refused_with_its_figure() {
    let case = Case::new();
    let trained = weights(&case.model, 3.0);
    let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
    assert!(!report.passed());
    assert!(report.reasons[0].contains("KL") && report.reasons[0].contains("above 0.15"), "{report:?}");
}

#[test]
fn what_has_not_learned_is_refused() {
    let case = Case::new();
    let trained = weights(&case.model, 0.0);
    let folder = save(&trained);
    for after in [2.0, 2.5, f64::NAN] {
        let report = case.inspect(&trained, folder.path(), (2.0, after));
        assert!(report.reasons[0].contains("did not improve"), "{report:?}");
    }
}

#[test]
fn a_folder_that_holds_something_else_is_refused() {
    let case = Case::new();
    let trained = weights(&case.model, 0.02);
    let report = case.inspect(&trained, save(&weights(&case.model, 0.05)).path(), (2.0, 1.0));
    assert!(report.reasons[0].contains("gives other logits"), "{report:?}");
    let folder = save(&trained);
    std::fs::write(folder.path().join(peft::TENSOR_FILE), b"torn").unwrap();
    let report = case.inspect(&trained, folder.path(), (2.0, 1.0));
    assert!(report.reasons[0].contains("cannot be read back"), "{report:?}");
    assert_eq!(report.measured.kl, None);
}

/// Held-out rows with the base's own answers; `shift` gives each the answer of another.
fn own_answers(model: &Model, shift: usize) -> Vec<Unseen> {
    let prompts: Vec<_> = WATCHED[4..14].iter().map(|p| conversation(p)).collect();
    let answered = answer(model, &prompts, 8, &Lanes::shared(64), &Courtesy::default()).unwrap();
    let row = |i: usize| {
        let other = &answered[(i + shift) % answered.len()];
        let tokens = Answered { prompt: answered[i].prompt.clone(), ..other.clone() }.tokens().unwrap();
        let rejected = answered[(i + shift + 1) % answered.len()].answer.clone();
        Unseen { rejected: Some(Tokens::new(&answered[i].prompt, &rejected)), tokens }
    };
    (0..answered.len()).map(row).collect()
}

#[test]
fn held_out_rows_are_measured_once_there_are_enough() {
    let mut case = Case::new();
    let trained = weights(&case.model, 0.02);
    case.held_out = own_answers(&case.model, 0);
    let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
    let (before, after) = report.measured.held_out.unwrap();
    assert!((after - before).abs() < 0.2 && report.measured.fitting.unwrap().0 >= 6, "{report:?}");
    assert_eq!(report.measured.pairs.unwrap().1, 10);
    assert!(!report.unmeasured.iter().any(|what| what.contains("unseen")), "{report:?}");
    case.held_out.truncate(7);
    let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
    assert_eq!((report.measured.held_out, report.measured.pairs), (None, None));
    let unmeasured =
        ["loss and pairs on unseen rows (7 held out, 8 are needed)", "corrections that hold (none was trained on)"];
    assert_eq!(report.unmeasured, unmeasured);
}

#[test]
fn what_does_worse_on_unseen_rows_is_refused() {
    let mut case = Case::new();
    case.held_out = own_answers(&case.model, 0);
    let trained = weights(&case.model, 3.0);
    let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
    assert!(report.reasons.iter().any(|r| r.contains("held-out rows rises")), "{report:?}");
    // The base is measured against itself: no pair's margin grows.
    let same = weights(&case.model, 0.0);
    let report = case.inspect(&same, save(&same).path(), (2.0, 1.0));
    assert!(report.reasons.iter().any(|r| r.contains("0 of 10 held-out pairs")), "{report:?}");
    assert!(report.measured.pairs_fall.unwrap().abs() < 1e-6);
}

#[test]
fn answers_that_belong_to_other_questions_are_refused() {
    let mut case = Case::new();
    case.held_out = own_answers(&case.model, 1);
    let trained = weights(&case.model, 0.0);
    let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
    assert!(report.reasons.iter().any(|r| r.contains("find their own answer likeliest")), "{report:?}");
}

#[test]
fn corrections_are_counted_beside_what_held_until_now() {
    let mut case = Case::new();
    let example =
        |note: &str| Example { note: Some(note.into()), ..testing::example(1, "q", "a", Origin::Correction, 10.0) };
    let notes = ["Never say \"zebra\".", "Always say \"zebra\"."];
    case.checks = compliance::checks(&case.model, &notes.map(example)).unwrap();
    let trained = weights(&case.model, 0.02);
    let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
    assert_eq!((report.measured.corrections, report.measured.corrections_before), (Some((1, 2)), Some(1)));
    assert_eq!(report.carries, [crate::feedback::lesson::digest(notes[0])]);
}

#[test]
fn order_is_an_end_no_circles_and_the_length() {
    let answered = |answer: &[u32], end| Answered { key: [0; 32], prompt: vec![1], answer: answer.to_vec(), end };
    let before = answered(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], Some(302));
    let after = |answer: &[u32], end| stays_in_order(&before, &answered(answer, end));
    assert!(after(&[1, 2, 3, 4, 5, 6, 7], Some(300)));
    assert!(!after(&[1, 2, 3, 4, 5, 6], Some(302)), "too short");
    assert!(!after(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], None), "no end");
    assert!(!after(&[9, 9, 1, 2, 1, 2, 1, 2, 1, 2], Some(302)), "circles");
    assert!(!goes_in_circles(&[1, 2, 3, 1, 2, 3, 1, 2, 3]) && goes_in_circles(&[5, 5, 5, 5]));
}
