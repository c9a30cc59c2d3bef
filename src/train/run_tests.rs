//! The loop over small random networks: the same bits whatever runs beside it, and what stays when it ends early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::engine::{CancelFlag, Draft, Engine, Event, Request};
use crate::model::candle::tests::{adapter, config, network};
use crate::model::config::Family;
use crate::model::lora::Target;
use crate::model::sampling::Sampling;
use crate::model::{Network, Tokens};
use crate::train::row::{Goal, Judge};
use crate::train::schedule::Shape;

fn rows() -> Vec<Row> {
    let tokens = |i: u32| Tokens::new(&[i % 37, 3 * i % 37, 5], &[7 * i % 37, 11 * i % 37]);
    (0..8)
        .map(|i| Row::imitate(tokens(i), f64::from(i + 1)))
        .chain((8..12).map(|i| Row::stay(tokens(i), 1.0)))
        .collect()
}

fn plan(total: usize, dropout: f32) -> Plan {
    let schedule = Schedule { shape: Shape::Cosine, peak: 1e-2, warmup: 1, total };
    Plan { schedule, weight_decay: 0.1, max_grad_norm: 1.0, dropout, seed: 5 }
}

/// Parameters after `steps` steps over all of `rows`, and how the training ended.
fn trained(
    network: &dyn Network,
    rows: &[Row],
    (steps, threads): (usize, usize),
    courtesy: Courtesy,
    after: &mut dyn FnMut(&StepReport, &Courtesy),
) -> (State, Result<()>) {
    let (courtesy, start) = (Arc::new(courtesy), adapter(network.config(), &Target::ALL));
    let mut learner = network.learner(&start, Arc::clone(&courtesy)).unwrap();
    let lanes = Lanes::new(threads, 12).unwrap();
    let mut state = State::new(start.data.clone(), 0.1);
    let ended = train(
        learner.as_mut(),
        &lanes,
        &mut state,
        &plan(steps, 0.2),
        &courtesy,
        &mut |_| rows.iter().collect(),
        &mut |report, _| {
            after(report, &courtesy);
            Ok(Then::GoOn)
        },
    );
    (state, ended)
}

fn bits(state: &State) -> Vec<u32> {
    state.params.iter().map(|p| p.to_bits()).collect()
}

#[test]
fn threads_and_a_chat_beside_it_change_no_bit() {
    let network: Arc<dyn Network> = Arc::new(network(&config(Family::Qwen3)));
    let (alone, ended) = trained(network.as_ref(), &rows(), (6, 1), Courtesy::default(), &mut |_, _| {});
    ended.unwrap();
    let engine = Engine::start(Arc::clone(&network)).unwrap();
    let (over, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                let sampling = Sampling::GREEDY;
                let request = Request {
                    ids: vec![1, 2, 3],
                    max_tokens: 5,
                    stop: vec![],
                    sampling,
                    adapter: None,
                    draft: Draft::Off,
                };
                let last = engine.generate(request, CancelFlag::new()).into_iter().last();
                assert!(matches!(last, Some(Event::Done(_))), "{last:?}");
                answers.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(2)); // a user who reads, so that the training gets on
            }
        });
        let courtesy = Courtesy::beside(engine.chat_gate());
        let (beside, ended) = trained(network.as_ref(), &rows(), (6, 3), courtesy, &mut |_, _| {});
        over.store(true, Ordering::SeqCst);
        ended.unwrap();
        assert_eq!(bits(&alone), bits(&beside));
    });
    assert!(answers.into_inner() > 0);
}

#[test]
fn an_interrupted_training_keeps_its_whole_steps() {
    let network = network(&config(Family::Qwen2));
    let mut cancel_at_three = |report: &StepReport, courtesy: &Courtesy| {
        if report.step == 3 {
            courtesy.cancel();
        }
    };
    let (whole, ended) = trained(&network, &rows(), (6, 2), Courtesy::default(), &mut cancel_at_three);
    assert!(ended.unwrap_err().is_interrupted());
    assert_eq!(whole.step, 3);
    // The same again takes the same three steps.
    let (again, _) = trained(&network, &rows(), (6, 1), Courtesy::default(), &mut cancel_at_three);
    assert_eq!((again.step, bits(&again)), (3, bits(&whole)));
}

#[test]
fn a_loss_that_is_no_number_ends_it_before_anything_changes() {
    let network = network(&config(Family::Qwen3));
    // Without its reference a judged row has no loss.
    let judge = Judge { tokens: Tokens::new(&[1, 2], &[3]), good: true, beta: 0.1, reference: None };
    let rows = [Row { goal: Goal::Judge(judge), weight: 1.0 }];
    let (state, ended) = trained(&network, &rows, (6, 1), Courtesy::default(), &mut |_, _| {});
    let error = ended.unwrap_err().to_string();
    assert!(error.contains("step 1") && error.contains("NaN"), "{error}");
    assert_eq!((state.step, state.params), (0, adapter(network.config(), &Target::ALL).data));
}
