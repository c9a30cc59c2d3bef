//! Blocks of Q4_K and Q5_K: 256 numbers in eight groups, each number scale · code − minimum with the scale and minimum of
//! its group, which are themselves six-bit multiples of two of the block's.
//!
//! The search is the one that ggml's names stand for: by weighted least squares, from several spacings of the codes, with
//! weights that grow with the numbers. candle's search without importance weights is an older one, which loses more; that
//! with them takes many times as long.

use half::f16;

/// Numbers that share a scale and a minimum.
const GROUP: usize = 32;
const GROUPS: usize = 8;
/// Partial sums that are independent of each other, for vector instructions.
const LANES: usize = 8;
/// Largest multiple of a block's scale and minimum.
const MOST: f32 = 63.0;

/// Q4_K blocks of `numbers`, 256 each.
pub fn q4_k(numbers: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(numbers.len() * 144 / 256);
    for block in numbers.as_chunks::<{ GROUP * GROUPS }>().0 {
        let codes = put(block, 15.0, -1.0, 20, &mut out);
        out.extend(low_halves(&codes));
    }
    out
}

/// Q5_K blocks of `numbers`, 256 each.
pub fn q5_k(numbers: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(numbers.len() * 176 / 256);
    for block in numbers.as_chunks::<{ GROUP * GROUPS }>().0 {
        let codes = put(block, 31.0, -0.5, 15, &mut out);
        // Bit g of byte i belongs to number i of group g.
        out.extend(
            (0..GROUP).map(|i| codes.iter().enumerate().fold(0, |bits, (g, codes)| bits | (codes[i] >> 4) << g)),
        );
        out.extend(low_halves(&codes));
    }
    out
}

/// Two groups share 32 bytes.
fn low_halves(codes: &[[u8; GROUP]; GROUPS]) -> impl Iterator<Item = u8> {
    let pairs = codes.as_chunks::<2>().0.iter();
    pairs.flat_map(|[low, high]| low.iter().zip(high).map(|(low, high)| low & 15 | (high & 15) << 4))
}

/// Appends a block's scales; returns its codes, from 0 to `most`.
fn put(block: &[f32; GROUP * GROUPS], most: f32, first: f32, steps: u8, out: &mut Vec<u8>) -> [[u8; GROUP]; GROUPS] {
    let groups: &[[f32; GROUP]] = block.as_chunks().0;
    let mut found = [(0.0, 0.0); GROUPS];
    for (found, group) in found.iter_mut().zip(groups) {
        *found = fit(group, most, first, steps);
    }
    let largest = |all: &mut dyn Iterator<Item = f32>| all.fold(0f32, f32::max);
    let scale = largest(&mut found.iter().map(|found| found.0)) / MOST;
    let minimum = largest(&mut found.iter().map(|found| found.1)) / MOST;
    let (scale, minimum) = (f16::from_f32(scale), f16::from_f32(minimum));
    let multiple = |of: f32, unit: f16| match unit.to_f32() {
        unit if unit > 0.0 => (of / unit).round().clamp(0.0, MOST) as u8,
        _ => 0,
    };
    let multiples = found.map(|(of_scale, of_minimum)| (multiple(of_scale, scale), multiple(of_minimum, minimum)));
    out.extend(scale.to_le_bytes());
    out.extend(minimum.to_le_bytes());
    out.extend(six_bits(&multiples));
    let mut codes = [[0; GROUP]; GROUPS];
    for ((codes, group), (s, m)) in codes.iter_mut().zip(groups).zip(multiples) {
        let (s, m) = (scale.to_f32() * f32::from(s), minimum.to_f32() * f32::from(m));
        let inverse = if s > 0.0 { 1.0 / s } else { 0.0 };
        for (code, x) in codes.iter_mut().zip(group) {
            *code = rounded((x + m) * inverse, most) as u8;
        }
    }
    codes
}

/// Eight scales and minima of six bits in twelve bytes: the top bits of the later four stand in the first eight.
fn six_bits(multiples: &[(u8, u8); GROUPS]) -> [u8; 12] {
    let mut out = [0; 12];
    for (at, (scale, minimum)) in multiples.iter().enumerate() {
        if at < 4 {
            out[at] |= scale;
            out[at + 4] |= minimum;
        } else {
            out[at + 4] = (scale & 15) | (minimum & 15) << 4;
            out[at - 4] |= (scale >> 4) << 6;
            out[at] |= (minimum >> 4) << 6;
        }
    }
    out
}

/// The nearest whole number within 0 to `most`; without a call for it, which would keep loops from vector instructions.
fn rounded(x: f32, most: f32) -> f32 {
    const WHOLE: f32 = 12_582_912.0; // 1.5 · 2²³: nothing behind the point is left
    (x.clamp(0.0, most) + WHOLE) - WHOLE
}

/// Scale and minimum (≥ 0) so that scale · code − minimum, with codes from 0 to `most`, is near `x`.
///
/// `steps` spacings around the one that spans all numbers are tried, from `first` codes more on, a tenth of a code apart.
fn fit(x: &[f32; GROUP], most: f32, first: f32, steps: u8) -> (f32, f32) {
    let mean_square = dot(x, x) / GROUP as f32;
    let weights = x.map(|x| mean_square.sqrt() + x.abs());
    let (low, high) = x.iter().fold((0f32, f32::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)));
    if high <= low {
        return (0.0, -low);
    }
    let sum_w = weights.iter().sum::<f32>();
    let sum_x = dot(&weights, x);
    let mut best = ((high - low) / most, low);
    let mut least = error(x, &weights, &codes(x, most / (high - low), low, most), best);
    for step in 0..=steps {
        let codes = codes(x, (most + first + 0.1 * f32::from(step)) / (high - best.1), best.1, most);
        let weighted: [f32; GROUP] = std::array::from_fn(|i| weights[i] * codes[i]);
        let sum_l = weighted.iter().sum::<f32>();
        let (sum_ll, sum_lx) = (dot(&weighted, &codes), dot(&weighted, x));
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut line =
            ((sum_w * sum_lx - sum_x * sum_l) / determinant, (sum_ll * sum_x - sum_l * sum_lx) / determinant);
        if line.1 > 0.0 {
            line = (sum_lx / sum_ll, 0.0); // a minimum cannot be below 0
        }
        let error = error(x, &weights, &codes, line);
        if error < least {
            (best, least) = (line, error);
        }
    }
    (best.0, -best.1)
}

fn codes(x: &[f32; GROUP], per_unit: f32, low: f32, most: f32) -> [f32; GROUP] {
    let mut codes = [0.0; GROUP];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = rounded(per_unit * (x - low), most);
    }
    codes
}

/// Σ w (slope · code + offset − x)²
fn error(x: &[f32; GROUP], weights: &[f32; GROUP], codes: &[f32; GROUP], (slope, offset): (f32, f32)) -> f32 {
    let mut off = [0.0; GROUP];
    for ((off, code), x) in off.iter_mut().zip(codes).zip(x) {
        *off = slope * code + offset - x;
    }
    let weighted: [f32; GROUP] = std::array::from_fn(|i| weights[i] * off[i]);
    dot(&weighted, &off)
}

fn dot(a: &[f32; GROUP], b: &[f32; GROUP]) -> f32 {
    let mut sums = [0.0; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}
