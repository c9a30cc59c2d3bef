//! The arithmetic between the products: norms, rotations, the gate's activation, softmax.
//!
//! Plain loops over slices, which [`Level::run`] has the compiler widen to the processor's registers.

use super::kernels::{Isa, Level, Work};

/// eˣ within two units in the last place; NaN stays NaN. Cody and Waite's reduction, then a polynomial.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Added to a small number, this leaves the nearest whole number in the lowest bits.
    const NEAREST: f32 = 12_582_912.0;
    let clamped = if x > 88.0 { 88.0 } else { x };
    let clamped = if clamped < -87.0 { -87.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + NEAREST;
    let n = shifted - NEAREST;
    // ln 2 in two parts, the first of few bits, so that its product is exact.
    let r = clamped - n * (355.0 / 512.0) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let p = p * r * r + r + 1.0;
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x.is_nan() { x } else { scaled }
}

/// Runs a closure's loops with the processor's instructions.
struct Loops<F>(F);

impl<F: FnOnce() -> T, T> Work for Loops<F> {
    type Out = T;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> T {
        (self.0)()
    }
}

/// Σ in sixteen parts: an order that does not depend on the processor.
#[inline(always)]
fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut parts = [0f32; 16];
    for chunk in chunks {
        for (part, x) in parts.iter_mut().zip(chunk) {
            *part += of(*x);
        }
    }
    parts.iter().sum::<f32>() + rest.iter().map(|x| of(*x)).sum::<f32>()
}

/// The largest; numbers that are none are passed over.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut parts = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (part, x) in parts.iter_mut().zip(chunk) {
            *part = if *x > *part { *x } else { *part };
        }
    }
    parts.iter().chain(rest).fold(f32::NEG_INFINITY, |most, x| if *x > most { *x } else { most })
}

/// x · weight / √(mean(x²) + eps)
pub fn rms_norm(level: Level, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    level.run(Loops(
        #[inline(always)]
        || {
            let factor = 1.0 / (sum(x, |x| x * x) / x.len() as f32 + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * factor * weight;
            }
        },
    ));
}

/// gate becomes silu(gate) · up, with silu(x) = x / (1 + e⁻ˣ).
pub fn swiglu(level: Level, gate: &mut [[f32; 16]], up: &[[f32; 16]]) {
    level.run(Loops(
        #[inline(always)]
        || {
            for (gate, up) in gate.as_flattened_mut().iter_mut().zip(up.as_flattened()) {
                *gate = *gate / (1.0 + exp(-*gate)) * up;
            }
        },
    ));
}

/// out = silu(gate) · up
pub fn gated(level: Level, gate: &[f32], up: &[f32], out: &mut [f32]) {
    level.run(Loops(
        #[inline(always)]
        || {
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = *gate / (1.0 + exp(-*gate)) * up;
            }
        },
    ));
}

/// What flows back through [`gated`]: `gate` becomes that of the gate, and `d`, that of the value, becomes that of `up`.
///
/// silu′(x) = σ(x) · (1 + x · (1 − σ(x)))
pub fn gated_back(level: Level, gate: &mut [f32], up: &[f32], d: &mut [f32]) {
    level.run(Loops(
        #[inline(always)]
        || {
            for ((gate, up), d) in gate.iter_mut().zip(up).zip(d) {
                let (x, sigma) = (*gate, 1.0 / (1.0 + exp(-*gate)));
                *gate = *d * up * (sigma * (1.0 + x * (1.0 - sigma)));
                *d *= x * sigma;
            }
        },
    ));
}

/// What flows back through [`rms_norm`], added to `dx`: with r = 1/√(mean(x²) + eps) and g = d · weight,
/// r · g − x · r³ · mean(g · x).
pub fn rms_back(level: Level, x: &[f32], weight: &[f32], eps: f32, d: &[f32], dx: &mut [f32]) {
    level.run(Loops(
        #[inline(always)]
        || {
            let r = 1.0 / (sum(x, |x| x * x) / x.len() as f32 + eps).sqrt();
            let mut parts = [0f64; 16];
            let sixteens = x.chunks(16).zip(d.chunks(16)).zip(weight.chunks(16));
            for ((x, d), weight) in sixteens {
                for (((part, x), d), weight) in parts.iter_mut().zip(x).zip(d).zip(weight) {
                    *part += f64::from(x * d * weight);
                }
            }
            let along = parts.iter().sum::<f64>() as f32 / x.len() as f32 * r * r * r;
            for (((dx, x), d), weight) in dx.iter_mut().zip(x).zip(d).zip(weight) {
                *dx += r * d * weight - x * along;
            }
        },
    ));
}

/// Σ eˣ = e^largest · sum, over numbers that come in parts.
#[derive(Debug, Clone, Copy)]
pub struct Exponentials {
    largest: f32,
    pub sum: f64,
}

impl Default for Exponentials {
    /// Of none.
    fn default() -> Exponentials {
        Exponentials { largest: f32::NEG_INFINITY, sum: 0.0 }
    }
}

impl Exponentials {
    pub fn ln(self) -> f64 {
        f64::from(self.largest) + self.sum.ln()
    }

    /// Looks at a part before it is taken in. Returns what other sums of e^(x − largest) are to be multiplied with.
    pub fn reach(&mut self, level: Level, x: &[f32]) -> f32 {
        level.run(Loops(
            #[inline(always)]
            || {
                let most = largest(x);
                if most <= self.largest {
                    return 1.0;
                }
                let factor = exp(self.largest - most);
                *self = Exponentials { largest: most, sum: self.sum * f64::from(factor) };
                factor
            },
        ))
    }

    /// Σ e^(x − largest) · (x − y)
    pub fn apart(self, level: Level, x: &[f32], y: &[f32]) -> f64 {
        level.run(Loops(
            #[inline(always)]
            || {
                let mut parts = [0f64; 16];
                for (xs, ys) in x.chunks(16).zip(y.chunks(16)) {
                    for ((part, x), y) in parts.iter_mut().zip(xs).zip(ys) {
                        *part += f64::from(exp(x - self.largest) * (x - y));
                    }
                }
                parts.iter().sum()
            },
        ))
    }

    /// Takes in a part: x becomes e^(x − largest), but its number `without`, which becomes 0.
    pub fn take(&mut self, level: Level, x: &mut [f32], without: Option<usize>) {
        level.run(Loops(
            #[inline(always)]
            || {
                x.iter_mut().for_each(|x| *x = exp(*x - self.largest));
                if let Some(at) = without {
                    x[at] = 0.0;
                }
                self.sum += f64::from(sum(x, |x| x));
            },
        ))
    }
}

/// x -= factor · y
pub fn subtract(level: Level, x: &mut [f32], factor: f32, y: &[f32]) {
    level.run(Loops(
        #[inline(always)]
        || x.iter_mut().zip(y).for_each(|(x, y)| *x -= factor * y),
    ));
}

/// What flows back through [`softmax`], in the place of `d`: p ∘ (d − Σ d ∘ p).
pub fn softmax_back(level: Level, p: &[f32], d: &mut [f32]) {
    level.run(Loops(
        #[inline(always)]
        || {
            let mut parts = [0f64; 16];
            for (p, d) in p.chunks(16).zip(d.chunks(16)) {
                for ((part, p), d) in parts.iter_mut().zip(p).zip(d) {
                    *part += f64::from(p * d);
                }
            }
            let along = parts.iter().sum::<f64>() as f32;
            d.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - along));
        },
    ));
}

/// x becomes softmax(x).
pub fn softmax(level: Level, x: &mut [f32]) {
    level.run(Loops(
        #[inline(always)]
        || {
            let (_, sum) = to_exponentials(x);
            let factor = 1.0 / sum;
            x.iter_mut().for_each(|x| *x *= factor);
        },
    ));
}

/// x becomes e^(x − largest), the largest of x; returns that and the sum.
pub fn exponentials(level: Level, x: &mut [f32]) -> (f32, f32) {
    level.run(Loops(
        #[inline(always)]
        || to_exponentials(x),
    ))
}

#[inline(always)]
fn to_exponentials(x: &mut [f32]) -> (f32, f32) {
    let largest = largest(x);
    x.iter_mut().for_each(|x| *x = exp(*x - largest));
    (largest, sum(x, |x| x))
}

/// Turns the pairs (xᵢ, xᵢ₊ₕ) of a head of 2h numbers by angles, given as h cosines and h sines.
pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (left, right) = head.split_at_mut(cos.len());
    for (((left, right), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
        (*left, *right) = (*left * cos - *right * sin, *right * cos + *left * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_rounding() {
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 3e-7, "e^{x}: {found} and {expected}");
        }
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY) > 1e38);
    }

    #[test]
    fn every_level_gives_the_formulas() {
        let x: Vec<f32> = (0..37).map(|i| ((i * 31) % 17) as f32 / 3.0 - 2.5).collect();
        let weight: Vec<f32> = (0..37).map(|i| 1.0 + i as f32 / 40.0).collect();
        for level in Level::all() {
            let mut out = vec![0.0; 37];
            rms_norm(level, &x, &weight, 1e-6, &mut out);
            let rms = (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 37.0 + 1e-6).sqrt();
            for ((out, x), weight) in out.iter().zip(&x).zip(&weight) {
                assert!((f64::from(*out) - f64::from(*x) * f64::from(*weight) / rms).abs() < 1e-5);
            }
            let mut p = x.clone();
            softmax(level, &mut p);
            let all: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
            assert!(p.iter().zip(&x).all(|(p, x)| (f64::from(*p) - f64::from(*x).exp() / all).abs() < 1e-6));
            let mut gate = [std::array::from_fn(|i| x[i])];
            swiglu(level, &mut gate, &[[2.0; 16]]);
            for (gate, x) in gate[0].iter().zip(&x) {
                let expected = 2.0 * f64::from(*x) / (1.0 + (-f64::from(*x)).exp());
                assert!((f64::from(*gate) - expected).abs() < 1e-5, "{gate} and {expected}");
            }
        }
    }

    #[test]
    fn exponentials_come_in_parts() {
        let x: Vec<f32> = (0..50).map(|i| ((i * 31) % 17) as f32 * 9.0 - 40.0 + i as f32).collect();
        let y: Vec<f32> = x.iter().map(|x| x * 0.9 + 1.0).collect();
        let term = |at: usize| if at == 20 { 0.0 } else { f64::from(x[at]).exp() };
        for level in Level::all() {
            let (mut all, mut apart, mut taken) = (Exponentials::default(), 0.0, x.clone());
            for part in [0..7, 7..8, 8..50] {
                let without = part.contains(&20).then(|| 20 - part.start);
                let factor = all.reach(level, &x[part.clone()]);
                apart = apart * f64::from(factor) + all.apart(level, &x[part.clone()], &y[part.clone()]);
                taken[..part.start].iter_mut().for_each(|x| *x *= factor);
                all.take(level, &mut taken[part], without);
            }
            let sum: f64 = (0..50).map(term).sum();
            assert!((all.ln() - sum.ln()).abs() < 1e-6, "{} and {}", all.ln(), sum.ln());
            for (at, x) in taken.iter().enumerate() {
                assert!((f64::from(*x) / all.sum - term(at) / sum).abs() < 1e-6, "{level:?}: {x}, the {at}th");
            }
            let terms = (0..50).map(|at| f64::from(x[at]).exp() * f64::from(x[at] - y[at]));
            assert!((apart / all.sum / (terms.sum::<f64>() / sum) - 1.0).abs() < 1e-5, "{apart}");
        }
    }

    #[test]
    fn rotation_keeps_lengths() {
        let mut head = [3.0, 0.0, 4.0, 1.0];
        rotate(&mut head, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(head, [-4.0, 0.0, 3.0, 1.0]);
    }
}
