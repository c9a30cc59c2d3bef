//! AdamW over one flat vector (Loshchilov and Hutter 2019; defaults as torch), and gradient clipping.

/// Moments of every parameter, and the number of steps taken.
#[derive(Debug, Clone)]
pub struct AdamW {
    m: Vec<f32>,
    v: Vec<f32>,
    step: i32,
    weight_decay: f32,
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPS: f32 = 1e-8;

impl AdamW {
    pub fn new(parameters: usize, weight_decay: f64) -> Self {
        AdamW { m: vec![0.0; parameters], v: vec![0.0; parameters], step: 0, weight_decay: weight_decay as f32 }
    }

    /// The state, to be saved with a checkpoint: first moments, second moments, steps taken.
    pub fn state(&self) -> (&[f32], &[f32], i32) {
        (&self.m, &self.v, self.step)
    }

    /// Goes on from a saved state of the same number of parameters.
    pub fn restore(&mut self, m: Vec<f32>, v: Vec<f32>, step: i32) {
        assert!(m.len() == self.m.len() && v.len() == self.v.len(), "an optimiser state of another size");
        (self.m, self.v, self.step) = (m, v, step);
    }

    /// One step: decay, then p −= lr · m̂ / (√v̂ + ε).
    pub fn step(&mut self, params: &mut [f32], grads: &[f32], learning_rate: f64) {
        self.step += 1;
        let correction1 = 1.0 - f64::from(BETA1).powi(self.step);
        let correction2 = (1.0 - f64::from(BETA2).powi(self.step)).sqrt();
        let size = (learning_rate / correction1) as f32;
        let correction2 = correction2 as f32;
        let decay = 1.0 - learning_rate as f32 * self.weight_decay;
        for (((p, g), m), v) in params.iter_mut().zip(grads).zip(&mut self.m).zip(&mut self.v) {
            *m = BETA1 * *m + (1.0 - BETA1) * g;
            *v = BETA2 * *v + (1.0 - BETA2) * g * g;
            *p = *p * decay - size * *m / (v.sqrt() / correction2 + EPS);
        }
    }
}

/// Euclidean norm, summed in f64 in order.
pub fn norm(grads: &[f32]) -> f64 {
    grads.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt()
}

/// Scales the gradient down to `max_norm` where it is longer (torch's `clip_grad_norm_`); returns the norm before.
pub fn clip(grads: &mut [f32], max_norm: f64) -> f64 {
    let norm = norm(grads);
    let scale = max_norm / (norm + 1e-6);
    if scale < 1.0 {
        let scale = scale as f32;
        grads.iter_mut().for_each(|g| *g *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_the_learning_rate_whatever_the_gradient() {
        let mut adam = AdamW::new(2, 0.0);
        let mut p = [1.0, -1.0];
        adam.step(&mut p, &[1e-3, -50.0], 0.1);
        assert!((p[0] - 0.9).abs() < 1e-4 && (p[1] + 0.9).abs() < 1e-4, "{p:?}");
    }

    #[test]
    fn follows_torch_over_three_steps() {
        // torch.optim.AdamW([0.5], lr=0.01, weight_decay=0.1) with gradients 0.2, -0.4, 0.1, in f64 by hand
        let (mut p, mut m, mut v) = (0.5f64, 0.0f64, 0.0f64);
        for (t, g) in [0.2f64, -0.4, 0.1].into_iter().enumerate() {
            p *= 1.0 - 0.01 * 0.1;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let (mh, vh) = (m / (1.0 - 0.9f64.powi(t as i32 + 1)), v / (1.0 - 0.999f64.powi(t as i32 + 1)));
            p -= 0.01 * mh / (vh.sqrt() + 1e-8);
        }
        let mut adam = AdamW::new(1, 0.1);
        let mut q = [0.5f32];
        for g in [0.2, -0.4, 0.1] {
            adam.step(&mut q, &[g], 0.01);
        }
        assert!((f64::from(q[0]) - p).abs() < 1e-6, "{} instead of {p}", q[0]);
    }

    #[test]
    fn clipping_shortens_only_long_gradients() {
        let mut long = [3.0, 4.0];
        assert_eq!(clip(&mut long, 1.0), 5.0);
        assert!((norm(&long) - 1.0).abs() < 1e-5);
        let mut short = [0.3, 0.4];
        clip(&mut short, 1.0);
        assert_eq!(short, [0.3, 0.4]);
    }

    #[test]
    fn a_restored_optimiser_goes_on_as_if_never_stopped() {
        let gradient = |k: usize| [0.1 * k as f32, -0.3];
        let mut whole = AdamW::new(2, 0.01);
        let mut p = [1.0, 2.0];
        (0..6).for_each(|k| whole.step(&mut p, &gradient(k), 1e-2));
        let mut first = AdamW::new(2, 0.01);
        let mut q = [1.0, 2.0];
        (0..3).for_each(|k| first.step(&mut q, &gradient(k), 1e-2));
        let (m, v, step) = first.state();
        let mut second = AdamW::new(2, 0.01);
        second.restore(m.to_vec(), v.to_vec(), step);
        (3..6).for_each(|k| second.step(&mut q, &gradient(k), 1e-2));
        assert_eq!(p, q);
    }
}
