//! Every product on every kind of processor at hand, against the plain sum in f64.

use std::ops::Range;

use half::{bf16, f16};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Floats, LANES, Level};
use crate::model::cpu::halves::halved;
use crate::model::cpu::interleaved::{Interleaved, TILE};
use crate::model::cpu::matrix::{Input, Matrix};
use crate::model::cpu::pack::{Packer, packed_size};
use crate::model::cpu::plane::Plane;
use crate::model::cpu::pool::Pool;
use crate::model::cpu::rounded::Rounded;
use crate::model::storage::Storage;

/// The bytes of `numbers` numbers: arbitrary codes with scales of usual sizes.
pub(crate) fn stored(storage: Storage, numbers: usize, rng: &mut StdRng) -> Vec<u8> {
    let (block, bytes) = storage.block();
    // Such that numbers are of a size, whatever the codes go up to.
    let most = match storage {
        Storage::Q8_0 => 127.0,
        Storage::Q4_0 => 8.0,
        Storage::Q4_1 | Storage::Q5_0 => 16.0,
        Storage::Q5_1 => 32.0,
        Storage::Q4K | Storage::Q5K => 1000.0,
        Storage::Q6K => 4000.0,
        _ => 1.0,
    };
    let small = |rng: &mut StdRng| (rng.random::<f32>() * 0.4 - 0.2) / most;
    let scales: &[usize] = match storage {
        Storage::Q8_0 | Storage::Q4_0 | Storage::Q5_0 => &[0],
        Storage::Q4_1 | Storage::Q5_1 | Storage::Q4K | Storage::Q5K => &[0, 2],
        Storage::Q6K => &[208],
        _ => &[],
    };
    let one = |rng: &mut StdRng| match storage {
        Storage::F32 => small(rng).to_le_bytes().to_vec(),
        Storage::F16 => f16::from_f32(small(rng)).to_le_bytes().to_vec(),
        Storage::BF16 => bf16::from_f32(small(rng)).to_le_bytes().to_vec(),
        _ => {
            let mut block: Vec<u8> = (0..bytes).map(|_| rng.random()).collect();
            for &at in scales {
                block[at..at + 2].copy_from_slice(&f16::from_f32(small(rng)).to_le_bytes());
            }
            block
        }
    };
    (0..numbers / block).flat_map(|_| one(rng)).collect()
}

/// A matrix, and its numbers as the file's reader gives them.
pub(crate) fn matrix(storage: Storage, rows: usize, columns: usize, rng: &mut StdRng) -> (Matrix, Vec<f32>) {
    let bytes = stored(storage, rows * columns, rng);
    let mut numbers = Vec::new();
    storage.decode().unwrap()(&bytes, &mut numbers);
    let mut packer = Packer::new(rows, columns, storage).unwrap();
    // In pieces that end in the midst of rows.
    let (_, block) = storage.block();
    bytes.chunks(7 * block).for_each(|part| packer.take(part));
    (packer.finish().unwrap(), numbers)
}

pub(crate) fn plane(rows: usize, width: usize, rng: &mut StdRng) -> Plane {
    let mut plane = Plane::new(rows, width);
    (0..rows).for_each(|row| plane.row_mut(row).iter_mut().for_each(|x| *x = rng.random::<f32>() * 4.0 - 2.0));
    plane
}

/// Widths that the type can have, odd ones where it can; under Miri, which takes a second for a millisecond, the first.
pub(crate) fn widths(storage: Storage) -> &'static [usize] {
    let all: &[usize] = match storage.block().0 {
        1 => &[7, 1, 33, 130],
        32 => &[32, 96, 288],
        _ => &[256, 768],
    };
    if cfg!(miri) { &all[..1] } else { all }
}

/// Compares all products of `matrix` with `x` as they should be: `x[token][column]`.
fn check(level: Level, (matrix, numbers): (&Matrix, &[f32]), input: Input<'_>, x: &[Vec<f32>], what: &str) {
    let columns = x[0].len();
    let mut out = vec![[0.0; LANES]; x.len()];
    for group in 0..matrix.groups() {
        for (at, out) in out.chunks_mut(TILE).enumerate() {
            matrix.times(level, group, input, at * TILE, out);
        }
        for lane in 0..LANES.min(matrix.rows() - group * LANES) {
            let w = &numbers[(group * LANES + lane) * columns..][..columns];
            for (found, x) in out.iter().zip(x) {
                let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                let found = f64::from(found[lane]);
                assert!((found - sum).abs() <= 4e-6 * size + 1e-6, "{what}, {level:?}, row {lane}: {found} and {sum}");
            }
        }
    }
}

#[test]
fn products_of_all_types_are_the_plain_sums() {
    let (mut rng, pool) = (StdRng::seed_from_u64(7), Pool::new(1).unwrap());
    for storage in Storage::READABLE {
        for &columns in widths(storage) {
            for (rows, tokens) in if cfg!(miri) { [(1, 1), (17, 4), (2, 3)] } else { [(1, 1), (16, 9), (37, 23)] } {
                let what = format!("{storage} {rows} × {columns}, {tokens} vectors");
                let (matrix, numbers) = matrix(storage, rows, columns, &mut rng);
                let plane = plane(tokens, columns, &mut rng);
                let x: Vec<Vec<f32>> = (0..tokens).map(|token| plane.row(token).to_vec()).collect();
                let mut rounded = Rounded::default();
                for level in Level::all() {
                    let interleaved = Interleaved::new(&pool, level, &plane);
                    let input = Input { plane: &plane, numbers: &interleaved, rounded: None };
                    check(level, (&matrix, &numbers), input, &x, &what);
                    if !matrix.is_coded() {
                        continue;
                    }
                    rounded.fill(&pool, level, &plane);
                    let x: Vec<Vec<f32>> = (0..tokens).map(|token| rounded.numbers(token)).collect();
                    let input = Input { plane: &plane, numbers: &interleaved, rounded: Some(&rounded) };
                    check(level, (&matrix, &numbers), input, &x, &format!("{what}, rounded"));
                }
            }
        }
    }
}

#[test]
fn halves_of_a_product_add_up_and_are_the_same_for_one_vector_and_for_many() {
    let (mut rng, pool) = (StdRng::seed_from_u64(11), Pool::new(1).unwrap());
    // Both halves of the second group's products with some rows.
    let of = |matrix: &Matrix, level: Level, plane: &Plane, rows: Range<usize>| -> Vec<[[f32; LANES]; 2]> {
        let numbers = Interleaved::new(&pool, level, plane);
        let x = Input { plane, numbers: &numbers, rounded: None };
        let [left, right] = [0, 1].map(|half| {
            let mut out = vec![[7.0; LANES]; rows.len()];
            matrix.times_half(level, (1, half), x, rows.start, &mut out);
            out
        });
        left.into_iter().zip(right).map(<[_; 2]>::from).collect()
    };
    let cases = [(Storage::F16, 1), (Storage::F32, 9), (Storage::BF16, 64), (Storage::F16, 264), (Storage::Q8_0, 96)];
    for (storage, columns) in cases {
        let (matrix, numbers) = matrix(storage, 21, columns, &mut rng);
        let plane = plane(19, columns, &mut rng);
        for level in Level::all() {
            let all = [of(&matrix, level, &plane, 0..TILE), of(&matrix, level, &plane, TILE..19)].concat();
            for (row, found) in all.into_iter().enumerate() {
                let mut alone = Plane::new(1, columns);
                alone.row_mut(0).copy_from_slice(plane.row(row));
                assert_eq!(of(&matrix, level, &alone, 0..1), [found], "{storage} of {columns}, {level:?}");
                for lane in 0..21 - LANES {
                    let w = &numbers[(LANES + lane) * columns..][..columns];
                    let sum: f64 = w.iter().zip(plane.row(row)).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    let found = f64::from(found[0][lane]) + f64::from(found[1][lane]);
                    assert!((found - sum).abs() <= 1e-5, "{storage} of {columns}, {level:?}: {found} and {sum}");
                }
            }
        }
    }
}

/// The largest codes and activations do not overflow any kernel's narrow sums.
#[test]
fn extremes_fit() {
    for storage in [Storage::Q8_0, Storage::Q4_0, Storage::Q5_1, Storage::Q6K] {
        for code in [0x00, 0x7f, 0x80, 0xff] {
            let (numbers, size) = storage.block();
            let mut block = vec![code; size];
            let scales: &[usize] = match storage {
                Storage::Q6K => &[208],
                Storage::Q5_1 => &[0, 2],
                _ => &[0],
            };
            scales.iter().for_each(|&at| block[at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes()));
            let columns = numbers.max(32);
            let mut packer = Packer::new(1, columns, storage).unwrap();
            packer.take(&block);
            let matrix = packer.finish().unwrap();
            let mut row = Vec::new();
            storage.decode().unwrap()(&block, &mut row);
            for sign in [1.0, -1.0] {
                let mut plane = Plane::new(1, columns);
                plane.row_mut(0).fill(sign);
                let mut rounded = Rounded::default();
                rounded.fill(&Pool::new(1).unwrap(), Level::detect(), &plane);
                let x = vec![plane.row(0).to_vec()];
                for level in Level::all() {
                    let input = Input { plane: &plane, numbers: &Interleaved::default(), rounded: Some(&rounded) };
                    check(level, (&matrix, &row), input, &x, &format!("{storage} of {code:#x}"));
                }
            }
        }
    }
}

#[test]
fn rows_read_back_are_the_numbers_of_the_file_bit_for_bit() {
    let mut rng = StdRng::seed_from_u64(8);
    for storage in Storage::READABLE {
        let columns = *widths(storage).last().unwrap();
        let (matrix, numbers) = matrix(storage, 21, columns, &mut rng);
        let mut row = vec![0.0; columns];
        for (at, expected) in numbers.chunks(columns).enumerate() {
            matrix.read(at, &mut row);
            let same = row.iter().zip(expected).all(|(a, b)| a == b);
            assert!(same, "{storage}, row {at}: {:?} and {:?}", &row[..4], &expected[..4]);
        }
    }
}

#[test]
fn panels_hold_the_numbers_of_the_file() {
    let mut rng = StdRng::seed_from_u64(10);
    for storage in Storage::READABLE {
        let wide = *widths(storage).last().unwrap();
        let (matrix, numbers) = matrix(storage, 37, wide, &mut rng);
        let block = if storage.block().0 == 1 { 1 } else { 32 };
        for columns in [0..wide, block..wide, 0..wide - block] {
            for level in Level::all() {
                // Two groups side by side, and a column between that nobody may touch.
                let (stride, first) = (3, 1);
                let mut panel = vec![Floats([7.0; LANES]); columns.len() * stride];
                for group in 0..2 {
                    matrix.widen(level, first + group, columns.clone(), &mut panel[group..], stride);
                }
                for (column, row) in columns.clone().zip(panel.chunks(stride)) {
                    for (at, found) in (first * LANES..).zip(row[..2].iter().flat_map(|sixteen| sixteen.0)) {
                        let expected = if at < 37 { numbers[at * wide + column] } else { 0.0 };
                        let near = (found - expected).abs() <= 1e-5 * (1.0 + expected.abs());
                        assert!(near, "{storage}, {level:?}: {found} and {expected}");
                    }
                    assert_eq!(row[2], Floats([7.0; LANES]));
                }
            }
        }
    }
}

#[test]
fn packed_matrices_are_hardly_larger_than_their_files() {
    let mut rng = StdRng::seed_from_u64(9);
    for storage in Storage::READABLE {
        let columns = if cfg!(miri) { 256 } else { 768 };
        let (matrix, _) = matrix(storage, 32, columns, &mut rng);
        assert_eq!(matrix.size() as u64, packed_size(32, columns, storage), "{storage}");
        let (numbers, bytes) = storage.block();
        let file = 32 * columns / numbers * bytes;
        assert!(matrix.size() <= file * 105 / 100, "{storage}: {} for {file}", matrix.size());
    }
}

#[test]
fn broken_tensors_are_refused() {
    let mut packer = Packer::new(2, 32, Storage::Q8_0).unwrap();
    packer.take(&[0; 34]);
    assert!(packer.finish().unwrap_err().to_string().contains("1 rows in place of 2"));
    let mut block = [0; 34];
    block[..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    for (storage, bytes) in [
        (Storage::Q8_0, block.to_vec()),
        (Storage::F32, f32::NAN.to_le_bytes().repeat(32)),
        (Storage::F16, f16::NEG_INFINITY.to_le_bytes().repeat(32)),
        (Storage::BF16, bf16::NAN.to_le_bytes().repeat(32)),
    ] {
        let mut packer = Packer::new(1, 32, storage).unwrap();
        packer.take(&bytes);
        assert!(packer.finish().unwrap_err().to_string().contains("not finite"), "{storage}");
    }
    assert!(Packer::new(4, 896, Storage::Q4K).is_err_and(|e| e.to_string().contains("no whole blocks of Q4_K")));
}

#[test]
fn two_parts_keep_twenty_two_bits() {
    let mut rng = StdRng::seed_from_u64(5);
    for (most, (rows, columns)) in
        [0.0, 1e-30, 3e-4, 1.0, 7e8].into_iter().zip([(37, 9), (16, 16), (3, 40), (33, 16), (1, 1)])
    {
        let number = |rng: &mut StdRng| most * (rng.random::<f32>() * 2.0 - 1.0) * rng.random::<f32>().powi(8);
        let numbers: Vec<f32> = (0..rows * columns).map(|_| number(&mut rng)).collect();
        for level in Level::all() {
            let ([first, second], factor) = halved(level, rows, columns, &numbers);
            for ((first, second), number) in first.numbers().iter().zip(second.numbers()).zip(&numbers) {
                assert_eq!(*first, f16::from_f32(number / factor).to_f32(), "{level:?}");
                assert_eq!(second, f16::from_f32(number / factor - first).to_f32(), "{level:?}");
                let found = f64::from(factor) * (f64::from(*first) + f64::from(second));
                let apart = (found - f64::from(*number)).abs();
                assert!(apart <= f64::from(number.abs()) / 4e6 + f64::from(most) / 1e11, "{found} and {number}");
            }
        }
    }
}

#[test]
fn what_is_no_number_does_not_count_as_the_largest() {
    for level in Level::all() {
        let mut numbers = vec![f32::NAN; 40];
        (numbers[3], numbers[38]) = (-3.0, 2.0);
        assert_eq!(halved(level, 1, 40, &numbers).1, 2f32.powi(-13), "{level:?}");
    }
}
