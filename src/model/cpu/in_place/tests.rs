//! Matrices that stay in their file, against the plain sums and against what the file's reader says.

use std::io::Write;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::model::cpu::kernels::tests::{plane, stored};
use crate::model::cpu::matrix::Matrix;
use crate::model::cpu::pack::Packer;
use crate::model::cpu::panel::{Form, Panel, Words};
use crate::model::cpu::pool::Pool;
use crate::model::mapped::FileMap;

const PLAIN: [Storage; 3] = [Storage::F32, Storage::F16, Storage::BF16];

/// In a file behind `skip` other bytes.
fn in_file(bytes: &[u8], skip: usize) -> Bytes {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0xff; skip]).unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(FileMap::new("weights", &file).unwrap()).bytes(skip..skip + bytes.len()).unwrap()
}

/// A matrix, and its numbers as the file's reader gives them. It lies at an odd place.
fn matrix(storage: Storage, rows: usize, columns: usize, rng: &mut StdRng) -> (Matrix, Vec<f32>) {
    let bytes = stored(storage, rows * columns, rng);
    let mut numbers = Vec::new();
    storage.decode().unwrap()(&bytes, &mut numbers);
    (Matrix::in_place(rows, columns, storage, in_file(&bytes, 13)).unwrap().unwrap(), numbers)
}

#[test]
fn products_are_the_plain_sums_and_the_same_for_one_vector_and_for_many() {
    let mut rng = StdRng::seed_from_u64(21);
    for storage in PLAIN {
        // Groups that are no four; rows of less than a piece, and of more than two.
        for (rows, columns, tokens) in [(16, 32, 1), (80, 96, 7), (112, 1184, 5), (32, 544, 67)] {
            let (matrix, numbers) = matrix(storage, rows, columns, &mut rng);
            let (all, x) = (matrix.stays().unwrap(), plane(tokens, columns, &mut rng));
            for level in Level::all() {
                let what = format!("{storage} {rows} × {columns}, {tokens} vectors, {level:?}");
                let stride = rows + 3;
                let mut out = vec![7.0; tokens * stride];
                all.times(level, 0..rows, (&x, 0..tokens), (&mut out, stride));
                for (token, out) in out.chunks(stride).enumerate() {
                    let mut one = vec![[0.0; LANES]; rows / LANES];
                    all.times_one(level, 0, x.row(token), &mut one);
                    assert_eq!(one.as_flattened(), &out[..rows], "{what}");
                    assert_eq!(out[rows..], [7.0; 3], "{what}");
                    for (w, found) in numbers.chunks(columns).zip(out) {
                        let products = w.iter().zip(x.row(token)).map(|(w, x)| f64::from(*w) * f64::from(*x));
                        let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                        let near = (f64::from(*found) - sum).abs() <= 4e-6 * size + 1e-6;
                        assert!(near, "{what}: {found} and {sum}");
                    }
                }
                // Some rows and some vectors, from the midst.
                let (from, middle) = (rows - LANES, tokens / 2);
                let mut some = vec![0.0; (tokens - middle) * LANES];
                all.times(level, from..rows, (&x, middle..tokens), (&mut some, LANES));
                for (some, out) in some.chunks(LANES).zip(out.chunks(stride).skip(middle)) {
                    assert_eq!(some, &out[from..rows], "{what}");
                }
            }
        }
    }
}

#[test]
fn rows_columns_and_panels_hold_the_numbers_of_the_file() {
    let mut rng = StdRng::seed_from_u64(22);
    let (rows, columns) = (48, 160);
    for storage in PLAIN {
        let (matrix, numbers) = matrix(storage, rows, columns, &mut rng);
        let number = |row: usize, column: usize| numbers[row * columns + column];
        assert_eq!(matrix.numbers(), numbers, "{storage}");
        for level in Level::all() {
            for within in [0..columns, 32..columns, 32..64] {
                let stride = 3;
                let mut out = vec![Floats([7.0; LANES]); within.len() * stride];
                matrix.widen(level, 1, within.clone(), &mut out, stride);
                for (column, out) in within.zip(out.chunks(stride)) {
                    assert_eq!(
                        out[0].0,
                        std::array::from_fn(|lane| number(LANES + lane, column)),
                        "{storage}, {level:?}"
                    );
                    assert_eq!(out[1..], [Floats([7.0; LANES]); 2]);
                }
                matrix.fetch(level, 1, 0..columns + 32);
            }
            // dy W of unit vectors is rows of W.
            let (mut panel, mut dy) = (Panel::default(), Plane::new(rows, rows));
            (0..rows).for_each(|row| dy.row_mut(row)[row] = 1.0);
            let pool = Pool::new(1).unwrap();
            let lined = crate::model::cpu::interleaved::Interleaved::new(&pool, level, &dy);
            let mut out = vec![0.0; rows * 64];
            panel.columns(level, Form::Floats, &matrix, 0..rows, 96..160);
            panel.times(level, &lined, 0..rows, 0, &mut out);
            for (row, out) in out.chunks(64).enumerate() {
                assert_eq!(out, &numbers[row * columns + 96..][..64], "{storage}, {level:?}");
            }
        }
    }
}

/// As those of packed weights are, whose scales are of sums in another order.
#[test]
fn words_are_those_of_packed_weights() {
    let (mut rng, pool) = (StdRng::seed_from_u64(23), Pool::new(1).unwrap());
    let (rows, columns, tokens) = (80, 160, 7);
    for storage in PLAIN {
        let bytes = stored(storage, rows * columns, &mut rng);
        let in_place = Matrix::in_place(rows, columns, storage, in_file(&bytes, 5)).unwrap().unwrap();
        let mut packer = Packer::new(rows, columns, storage).unwrap();
        packer.take(&bytes);
        let packed = packer.finish().unwrap();
        let (x, dy) = (plane(tokens, columns, &mut rng), plane(tokens, rows, &mut rng));
        for level in Level::all() {
            let of = |matrix: &Matrix| {
                let (mut panel, mut out) = (Panel::default(), vec![vec![0.0; tokens * 48], vec![0.0; tokens * 64]]);
                let (mut forward, mut back) = (Words::default(), Words::default());
                forward.fill(&pool, level, &x, 0..columns);
                panel.rows(level, Form::Words, matrix, (32, 48), 32..columns);
                panel.times(level, &forward, 32..columns, 0, &mut out[0]);
                back.fill(&pool, level, &dy, 0..rows);
                panel.columns(level, Form::Words, matrix, 16..rows, 96..columns);
                panel.times(level, &back, 0..rows - 16, 0, &mut out[1]);
                out.concat()
            };
            let (found, expected) = (of(&in_place), of(&packed));
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let most = if storage == Storage::F32 { 1e-4 } else { 0.0 };
                assert!((found - expected).abs() <= most, "{storage}, {level:?}: {found}, {expected}, the {at}th");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_packed_and_what_is_broken_refused() {
    let of = |rows, columns, storage, bytes: &[u8]| InPlace::new(rows, columns, storage, in_file(bytes, 0));
    assert!(of(17, 32, Storage::BF16, &[0; 17 * 64]).unwrap().is_none());
    assert!(of(16, 16, Storage::F16, &[0; 512]).unwrap().is_none());
    assert!(of(16, 32, Storage::Q8_0, &[0; 16 * 34]).unwrap().is_none());
    assert!(of(16, 16, Storage::F32, &[0; 1024]).unwrap().is_some());
    let error = of(16, 32, Storage::F16, &[0; 1000]).unwrap_err().to_string();
    assert_eq!(error, "holds 1000 bytes in place of 1024");
    for (storage, number) in [
        (Storage::F32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
        (Storage::F32, f32::NAN.to_le_bytes().to_vec()),
        (Storage::F16, half::f16::INFINITY.to_le_bytes().to_vec()),
        (Storage::BF16, half::bf16::NAN.to_le_bytes().to_vec()),
    ] {
        for at in [0, 16 * 32 - 1] {
            let mut bytes = vec![0; 16 * 32 * number.len()];
            bytes[at * number.len()..][..number.len()].copy_from_slice(&number);
            assert!(of(16, 32, storage, &bytes).unwrap_err().to_string().contains("not finite"), "{storage}");
        }
    }
}
