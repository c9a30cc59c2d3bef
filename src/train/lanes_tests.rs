//! Lanes over a learner made of arithmetic: what they add up, in which order, and how they end when a pass fails.

use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::model::{Pass, Tokens};

/// A row of ids a, b, … has log p = −a/10 at its targets, and gradients that round: their sum depends on the order.
struct Arithmetic {
    parameters: usize,
    /// What a row does that begins with this id.
    trouble: Option<(u32, Trouble)>,
}

#[derive(Clone, Copy)]
enum Trouble {
    Fails,
    Panics,
}

impl Learner for Arithmetic {
    fn len(&self) -> usize {
        self.parameters
    }

    fn load(&mut self, _: &[f32]) -> Result<()> {
        Ok(())
    }

    fn forward<'a>(&'a self, rows: &[&Tokens], _: PassOptions) -> Result<Box<dyn Pass + 'a>> {
        let first: Vec<u32> = rows.iter().map(|row| row.ids[0]).collect();
        // Later passes first, so that the order of the sums is not that of the work.
        std::thread::sleep(Duration::from_millis(u64::from(3 - first[0] % 3)));
        match self.trouble {
            Some((id, Trouble::Fails)) if first.contains(&id) => Err(Error::failure(format!("row {id} fails"))),
            Some((id, Trouble::Panics)) if first.contains(&id) => panic!("row {id} panics"),
            _ => {
                let logprobs = rows.iter().map(|row| vec![-(row.ids[0] as f32) / 10.0; row.target_count()]).collect();
                Ok(Box::new(Sum { parameters: self.parameters, first, logprobs, kl: vec![Vec::new(); rows.len()] }))
            }
        }
    }

    fn reference(&self, _: &[&Tokens]) -> Result<Vec<Vec<f32>>> {
        Err(Error::failure("not asked for here"))
    }
}

struct Sum {
    parameters: usize,
    first: Vec<u32>,
    logprobs: Vec<Vec<f32>>,
    kl: Vec<Vec<f32>>,
}

impl Pass for Sum {
    fn logprobs(&self) -> &[Vec<f32>] {
        &self.logprobs
    }

    fn kl(&self) -> &[Vec<f32>] {
        &self.kl
    }

    fn backward(self: Box<Self>, d_logprobs: &[Vec<f32>], _: Option<&[Vec<f32>]>, grads: &mut [f32]) -> Result<()> {
        for (first, d) in self.first.iter().zip(d_logprobs) {
            for (i, grad) in grads.iter_mut().enumerate().take(self.parameters) {
                *grad += d.iter().sum::<f32>() * ((first * 31 + i as u32) as f32).sin() * 10f32.powi(*first as i32 % 7);
            }
        }
        Ok(())
    }
}

/// One row a pass: 6 tokens, of which 2 count.
const PASS: usize = 6;

fn rows(n: u32) -> Vec<Row> {
    (1..=n).map(|i| Row::imitate(Tokens::new(&[i, 0, 0, 0], &[1, 1]), f64::from(i))).collect()
}

/// Fails where the lanes hang.
fn step(threads: usize, trouble: Option<(u32, Trouble)>) -> Result<StepSum> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let (rows, learner) = (rows(20), Arithmetic { parameters: 50, trouble });
        let lanes = Lanes::new(threads, PASS).unwrap();
        let _ = sender.send(lanes.step(&learner, &rows.iter().collect::<Vec<_>>(), StepOptions::default()));
    });
    receiver.recv_timeout(Duration::from_secs(20)).expect("the step ends")
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let one = step(1, None).unwrap();
    assert_eq!(one.row_losses, (1..=20).map(|i| f64::from(i as f32 / 10.0)).collect::<Vec<_>>());
    let weighted: f64 = (1..=20).map(|i| f64::from(i) * f64::from(i as f32 / 10.0)).sum::<f64>() / 210.0;
    assert!((one.loss - weighted).abs() < 1e-12, "{} instead of {weighted}", one.loss);
    for threads in [2, 3, 8] {
        let more = step(threads, None).unwrap();
        let bits = |sum: &StepSum| sum.grads.iter().map(|g| g.to_bits()).collect::<Vec<_>>();
        assert_eq!(
            (bits(&one), one.loss.to_bits(), &one.row_losses),
            (bits(&more), more.loss.to_bits(), &more.row_losses)
        );
    }
}

#[test]
fn a_pass_that_fails_or_panics_ends_the_step() {
    for threads in [1, 2, 4] {
        for id in [1, 2, 11, 20] {
            let failed = step(threads, Some((id, Trouble::Fails))).unwrap_err();
            assert_eq!(failed.message(), format!("row {id} fails"));
            let panicked = step(threads, Some((id, Trouble::Panics))).unwrap_err();
            assert!(panicked.message().ends_with(&format!("row {id} panics")), "{panicked}");
        }
    }
}

#[test]
fn results_come_in_the_order_of_the_work() {
    for lanes in [Lanes::new(3, 64).unwrap(), Lanes::shared(64)] {
        let slow_first = |i: usize| {
            std::thread::sleep(Duration::from_millis(if i == 0 { 30 } else { 0 }));
            Ok(10 * i)
        };
        assert_eq!(lanes.map(5, slow_first).unwrap(), [0, 10, 20, 30, 40]);
        let error = lanes.map(5, |i| if i == 3 { Err(Error::failure("three")) } else { Ok(i) }).unwrap_err();
        assert_eq!(error.message(), "three");
    }
}
