//! Panels on every kind of processor at hand, against plain sums in f64.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::super::kernels::tests::{matrix, plane, widths};
use super::super::matrix::Input;
use super::super::plane::Plane;
use super::super::pool::Pool;
use super::*;
use crate::model::storage::Storage;

fn near(found: f32, products: impl Iterator<Item = (f32, f32)>, what: &str) {
    let products = products.map(|(a, b)| f64::from(a) * f64::from(b));
    let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
    assert!((f64::from(found) - sum).abs() <= 4e-6 * size + 1e-6, "{what}: {found} and {sum}");
}

#[test]
fn rows_of_a_matrix_give_the_bits_of_one_row_alone() {
    let (mut rng, pool) = (StdRng::seed_from_u64(3), Pool::new(1).unwrap());
    for storage in Storage::READABLE {
        for &columns in widths(storage) {
            let (rows, tokens) = if cfg!(miri) { (17, 4) } else { (85, 29) };
            let (matrix, x) = (matrix(storage, rows, columns, &mut rng).0, plane(tokens, columns, &mut rng));
            for level in Level::all() {
                let (lined, mut panel) = (Interleaved::new(&pool, level, &x), Panel::default());
                for (first, width) in [(0, 64), (64, 32), (16, 48), (80, 16)] {
                    let width = width.min(rows.next_multiple_of(LANES).saturating_sub(first));
                    // From a tile on, in two pieces where there are two blocks.
                    let from = if tokens > TILE { TILE } else { 0 };
                    let mut out = vec![0.0; (tokens - from) * width];
                    let cut = if columns > 64 { columns / 64 * 32 } else { 0 };
                    for piece in [0..cut, cut..columns].into_iter().filter(|piece| !piece.is_empty()) {
                        panel.rows(level, Form::Floats, &matrix, (first, width), piece.clone());
                        panel.times(level, &lined, piece, from, &mut out);
                    }
                    for token in from..tokens {
                        let mut alone = [[0.0; LANES]];
                        let one = plane_of(x.row(token));
                        let numbers = Interleaved::new(&pool, level, &one);
                        for group in 0..width / LANES {
                            let input = Input { plane: &one, numbers: &numbers, rounded: None };
                            matrix.times(level, first / LANES + group, input, 0, &mut alone);
                            let found = &out[(token - from) * width + group * LANES..][..LANES];
                            assert_eq!(found, alone[0], "{storage}, {level:?}, {columns} columns from {first}");
                        }
                    }
                }
            }
        }
    }
}

fn plane_of(row: &[f32]) -> Plane {
    let mut plane = Plane::new(1, row.len());
    plane.row_mut(0).copy_from_slice(row);
    plane
}

#[test]
fn columns_of_a_matrix_are_summed_over_its_rows() {
    let (mut rng, pool) = (StdRng::seed_from_u64(4), Pool::new(1).unwrap());
    for storage in Storage::READABLE {
        let wide = widths(storage)[0];
        let (rows, tokens) = if cfg!(miri) { (17, 4) } else { (85, 29) };
        let ((matrix, numbers), dy) = (matrix(storage, rows, wide, &mut rng), plane(tokens, rows, &mut rng));
        for level in Level::all() {
            let (lined, mut panel) = (Interleaved::new(&pool, level, &dy), Panel::default());
            for first in (0..wide).step_by(WIDTH) {
                let columns = first..wide.min(first + WIDTH);
                let width = columns.len().next_multiple_of(LANES);
                let mut out = vec![0.0; tokens * width];
                for span in [0..16, 16..rows] {
                    panel.columns(level, Form::Floats, &matrix, span.clone(), columns.clone());
                    panel.times(level, &lined, span, 0, &mut out);
                }
                for (token, out) in out.chunks(width).enumerate() {
                    for (column, found) in columns.clone().zip(out) {
                        let w = numbers[column..].iter().step_by(wide).copied();
                        near(*found, w.zip(dy.row(token).iter().copied()), &format!("{storage}, {level:?}"));
                    }
                }
            }
        }
    }
}

/// x · b past a panel that is filled with b, near the sums.
fn filled(level: Level, x: &Plane, lined: &impl Rows, b: &Plane) {
    let (depth, width, mut panel) = (b.rows(), b.width(), Panel::default());
    panel.fill(level, lined.form(), (depth, width), |k, row| row.copy_from_slice(b.row(k)));
    let mut out = vec![0.0; x.rows() * b.stride()];
    panel.times(level, lined, 0..depth, 0, &mut out);
    for (token, out) in out.chunks(b.stride()).enumerate() {
        for (column, found) in out[..width].iter().enumerate() {
            let products = (0..depth).map(|k| (x.row(token)[k], b.row(k)[column]));
            near(*found, products, &format!("{level:?}, {depth} × {width}"));
        }
    }
}

#[test]
fn numbers_that_are_no_matrix() {
    let (mut rng, pool) = (StdRng::seed_from_u64(5), Pool::new(1).unwrap());
    for (depth, width, tokens) in [(1, 1, 1), (16, 64, 13), (5, 37, 30), (40, 37, 2 * CHUNK + 5)] {
        let (b, x) = (plane(depth, width, &mut rng), plane(tokens, depth, &mut rng));
        for level in Level::all() {
            filled(level, &x, &Interleaved::new(&pool, level, &x), &b);
        }
    }
}

/// What words of such numbers leave counts, so that only rows are rounded.
#[test]
fn numbers_that_are_no_matrix_keep_their_bits_in_words() {
    let (mut rng, pool) = (StdRng::seed_from_u64(15), Pool::new(1).unwrap());
    for (depth, width, tokens) in [(1, 1, 1), (16, 64, 13), (77, 37, 30), (40, 37, 2 * CHUNK + 5)] {
        // A number a block, which words hold as it is.
        let (b, mut x) = (plane(depth, width, &mut rng), plane(tokens, depth, &mut rng));
        for (token, row) in x.rows_mut().enumerate() {
            let others = row.iter_mut().enumerate().filter(|(at, _)| at % 32 != token % depth.min(32));
            others.for_each(|(_, x)| *x = 0.0);
        }
        for level in Level::all() {
            let mut lined = Words::default();
            lined.fill(&pool, level, &x, 0..depth);
            filled(level, &x, &lined, &b);
        }
    }
}

#[test]
fn outer_products_are_summed_over_all_rows() {
    let mut rng = StdRng::seed_from_u64(6);
    for (rows, wide, rank, columns) in [(1, 1, 1, 0..1), (70, 50, 16, 3..50), (130, 40, 20, 0..13)] {
        let (x, low) = (plane(rows, wide, &mut rng), plane(rows, rank, &mut rng));
        for level in Level::all() {
            let mut out = vec![0.0; columns.len() * low.stride()];
            outer(level, &x, columns.clone(), &low, &mut out);
            for (column, out) in columns.clone().zip(out.chunks(low.stride())) {
                for (k, found) in out[..rank].iter().enumerate() {
                    let products = (0..rows).map(|row| (x.row(row)[column], low.row(row)[k]));
                    near(*found, products, &format!("{level:?}, {rows} × {wide}, rank {rank}"));
                }
            }
        }
    }
}

/// Within the rounding of both sides, at most half a step of a block's each.
#[test]
fn words_are_near_the_numbers() {
    let (mut rng, pool) = (StdRng::seed_from_u64(8), Pool::new(2).unwrap());
    for (rows, columns, tokens) in
        if cfg!(miri) { vec![(17, 33, 4)] } else { vec![(85, 130, 29), (16, 288, 1), (64, 7, 12)] }
    {
        let ((matrix, numbers), x) = (matrix(Storage::F32, rows, columns, &mut rng), plane(tokens, columns, &mut rng));
        for level in Level::all() {
            let (mut lined, mut panel) = (Words::default(), Panel::default());
            lined.fill(&pool, level, &x, 0..columns);
            let width = rows.next_multiple_of(LANES).min(WIDTH);
            let mut out = vec![0.0; tokens * width];
            for from in (0..columns).step_by(64) {
                let piece = from..columns.min(from + 64);
                panel.rows(level, Form::Words, &matrix, (0, width), piece.clone());
                panel.times(level, &lined, piece, 0, &mut out);
            }
            for (token, out) in out.chunks(width).enumerate() {
                for (row, found) in out.iter().enumerate().take(rows) {
                    let w = &numbers[row * columns..][..columns];
                    let (mut sum, mut most) = (0f64, 0f64);
                    let sizes =
                        |block: &[f32], power| block.iter().map(|x| f64::from(x.abs()).powi(power)).sum::<f64>();
                    for (w, x) in w.chunks(64).zip(x.row(token).chunks(64)) {
                        let of_w = w.chunks(32).map(|block| sizes(block, 2).sqrt()).fold(0.0, f64::max) / 32_767.0;
                        for (w, x) in w.chunks(32).zip(x.chunks(32)) {
                            sum += w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                            let largest = x.iter().fold(0f32, |most, x| most.max(x.abs()));
                            let of_x = (f64::from(largest) / 32_767.0).max(sizes(x, 2).sqrt() / 65_500.0);
                            most += 0.5 * (of_w * sizes(x, 1) + of_x * sizes(w, 1) + 16.0 * of_w * of_x);
                        }
                    }
                    let off = (f64::from(*found) - sum).abs();
                    assert!(off <= most * 1.01 + 1e-6, "{level:?}: {found} and {sum}, {off} apart of {most}");
                }
            }
        }
    }
}

/// The largest sums that there can be do not overflow: all of a size, and one that is all there is.
#[test]
fn extreme_words_fit() {
    let pool = Pool::new(1).unwrap();
    for ones in [1, 2, 4, 5, 31, 32] {
        let (mut x, mut b) = (Plane::new(1, 32), Plane::new(32, 16));
        x.row_mut(0)[..ones].fill(-3.0);
        (0..ones).for_each(|k| b.row_mut(k).fill(if ones % 2 == 0 { 7.0 } else { -7.0 }));
        let expected = if ones % 2 == 0 { -21.0 } else { 21.0 } * ones as f32;
        for level in Level::all() {
            let (mut lined, mut panel, mut out) = (Words::default(), Panel::default(), vec![0.0; 16]);
            lined.fill(&pool, level, &x, 0..32);
            panel.fill(level, Form::Words, (32, 16), |k, row| row.copy_from_slice(b.row(k)));
            panel.times(level, &lined, 0..32, 0, &mut out);
            assert!(out.iter().all(|y| (y / expected - 1.0).abs() < 2e-4), "{level:?}, {ones}: {out:?}");
        }
    }
}

#[test]
fn what_is_no_number_stays_none_in_words() {
    let (mut rng, pool) = (StdRng::seed_from_u64(9), Pool::new(1).unwrap());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for level in Level::all() {
            let (mut x, mut lined, mut panel) = (plane(3, 40, &mut rng), Words::default(), Panel::default());
            let b = plane(40, 16, &mut rng);
            let products = |x: &Plane, b: &Plane, lined: &mut Words, panel: &mut Panel| {
                lined.fill(&pool, level, x, 0..40);
                panel.fill(level, Form::Words, (40, 16), |k, row| row.copy_from_slice(b.row(k)));
                let mut out = vec![0.0; 3 * 16];
                panel.times(level, lined, 0..40, 0, &mut out);
                out
            };
            let mut worse = b.clone();
            worse.row_mut(35)[5] = bad;
            let out = products(&x, &worse, &mut lined, &mut panel);
            assert!(out.iter().enumerate().all(|(at, y)| y.is_finite() != (at % 16 == 5)), "{level:?}: {out:?}");
            x.row_mut(1)[33] = bad;
            let out = products(&x, &b, &mut lined, &mut panel);
            assert!(out.iter().enumerate().all(|(at, y)| y.is_finite() != (at / 16 == 1)), "{level:?}: {out:?}");
        }
    }
}
