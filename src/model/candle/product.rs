//! Products of matrices in f32: the one place where the `gemm` crate is called.

pub use gemm::Parallelism;

/// A matrix within a slice, in any layout.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> View<'a> {
    /// `[rows, columns]`, with the strides from row to row and from column to column; None where an element lies outside
    /// `values`.
    pub fn within(values: &'a [f32], shape: [usize; 2], strides: [usize; 2]) -> Option<View<'a>> {
        let ([rows, columns], [row_stride, column_stride]) = (shape, strides);
        if rows > 0 && columns > 0 {
            let last = (rows - 1).checked_mul(row_stride)?.checked_add((columns - 1).checked_mul(column_stride)?)?;
            values.get(last)?;
        }
        Some(View { values, rows, columns, row_stride, column_stride })
    }
}

/// `out` = a · b, row behind row. Panics where the shapes do not fit.
pub fn product(out: &mut [f32], a: View<'_>, b: View<'_>, parallelism: Parallelism) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "the operands of a product do not fit");
    if m == 0 || n == 0 {
        return;
    }
    assert_eq!(Some(out.len()), m.checked_mul(n), "a product outside its place");
    // SAFETY: `out` is m rows of n values by the line above, and nobody else's for the time of the call.
    // `View` has made sure that every element of the operands lies within its slice, and both slices outlive the call.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919) % 97) as f32 / 48.0 - 1.0).collect()
    }

    #[test]
    fn any_layout() {
        for (m, k, n) in [(1, 1, 1), (5, 7, 3), (3, 0, 2), (2, 9, 1), (17, 33, 20), (64, 100, 48)] {
            let (a, b) = (numbers(m * k), numbers(n * k));
            let (by_row, by_column) = (View::within(&a, [m, k], [k, 1]), View::within(&b, [k, n], [1, k]));
            let mut out = vec![9.0; m * n];
            product(&mut out, by_row.unwrap(), by_column.unwrap(), Parallelism::None);
            for (i, row) in out.chunks(n).enumerate() {
                for (j, found) in row.iter().enumerate() {
                    let expected: f32 = (0..k).map(|at| a[i * k + at] * b[j * k + at]).sum();
                    assert!((found - expected).abs() < 1e-4, "{m} {k} {n}: {found} and {expected}");
                }
            }
        }
    }

    #[test]
    fn a_matrix_outside_its_values_is_none() {
        let values = [0.0; 12];
        assert!(View::within(&values, [3, 4], [4, 1]).is_some());
        assert!(View::within(&values, [3, 4], [5, 1]).is_none());
        assert!(View::within(&values, [2, 2], [usize::MAX, 2]).is_none());
        assert!(View::within(&values, [0, 4], [usize::MAX, usize::MAX]).is_some());
    }
}
