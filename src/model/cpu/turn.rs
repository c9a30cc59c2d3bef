//! From sixteen rows behind each other to sixteen rows side by side, numbers of sixteen bits.
//!
//! Four rows of four numbers are turned in four words: a number at a time would be stored for each that is.

use super::kernels::{Halves, LANES};

/// Numbers that a word holds.
const WORD: usize = 4;

/// The columns of sixteen rows.
// Compiled once, for any processor: the vectors that the compiler makes of it where AVX-512 is there are slower.
#[inline(never)]
pub fn columns_of(rows: &[[u16; LANES]; LANES]) -> [Halves; LANES] {
    let mut columns = [Halves([0; LANES]); LANES];
    for (at, columns) in columns.as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
        for lane in (0..LANES).step_by(WORD) {
            let row = |lane: usize| word(rows[lane].as_chunks().0[at]);
            let turned = four_by_four([row(lane), row(lane + 1), row(lane + 2), row(lane + 3)]);
            for (column, word) in columns.iter_mut().zip(turned) {
                let numbers = [word as u16, (word >> 16) as u16, (word >> 32) as u16, (word >> 48) as u16];
                column.0[lane..lane + WORD].copy_from_slice(&numbers);
            }
        }
    }
    columns
}

/// The first number lowest.
#[inline(always)]
fn word(numbers: [u16; WORD]) -> u64 {
    let [a, b, c, d] = numbers.map(u64::from);
    a | b << 16 | c << 32 | d << 48
}

/// Rows of four numbers become columns: first blocks of two by two change places, then numbers within them.
#[inline(always)]
fn four_by_four([a, b, c, d]: [u64; 4]) -> [u64; 4] {
    const LOW: u64 = 0x0000_0000_ffff_ffff;
    const EVEN: u64 = 0x0000_ffff_0000_ffff;
    let (a, c) = (a & LOW | c << 32, a >> 32 | c & !LOW);
    let (b, d) = (b & LOW | d << 32, b >> 32 | d & !LOW);
    [a & EVEN | (b & EVEN) << 16, a >> 16 & EVEN | b & !EVEN, c & EVEN | (d & EVEN) << 16, c >> 16 & EVEN | d & !EVEN]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::array::from_fn;

    #[test]
    fn columns_hold_the_numbers_of_the_rows() {
        let rows: [[u16; LANES]; LANES] = from_fn(|row| from_fn(|column| (0x1234 + 577 * row + 9311 * column) as u16));
        for (at, column) in columns_of(&rows).iter().enumerate() {
            assert_eq!(column.0, rows.map(|row| row[at]), "column {at}");
        }
    }
}
