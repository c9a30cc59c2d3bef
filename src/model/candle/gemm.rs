//! Products of matrices on the CPU, without what candle's own takes beside them.
//!
//! candle asks at every product how many cores there are, and on Linux that reads and parses `/proc/cpuinfo`: half of a
//! small model's time. The product itself is the same: the `gemm` crate's.

use std::sync::OnceLock;

use candle_core::{CpuStorage, Layout, Result, Shape, bail};
use gemm::Parallelism;

/// a · b for a `[…, m, k]` and b `[…, k, n]` in any layout, with the same dimensions before them; f32.
///
/// Runs in the rayon pool that it is called from.
pub fn product(a: &CpuStorage, a_layout: &Layout, b: &CpuStorage, b_layout: &Layout) -> Result<(CpuStorage, Shape)> {
    let (a, b) = match (a, b) {
        (CpuStorage::F32(a), CpuStorage::F32(b)) => (Operand::new(a, a_layout)?, Operand::new(b, b_layout)?),
        _ => bail!("a product on the CPU is of f32 values"),
    };
    let ((m, k), (inner, n)) = ((a.rows, a.columns), (b.rows, b.columns));
    if inner != k || a.batch != b.batch || a_layout.dims().len() != b_layout.dims().len() {
        bail!("a product of {:?} and {:?}", a_layout.dims(), b_layout.dims())
    }
    let mut values = vec![0f32; a.batch * m * n];
    if m > 0 && n > 0 && k > 0 {
        for (i, out) in values.chunks_exact_mut(m * n).enumerate() {
            // SAFETY: `out` is m × n values that nobody else sees, with their own strides of n and 1. `Operand::new` has made
            // sure that every element of each of its batches lies within its slice, and both slices live until the end of
            // this function, which gemm does not outlive.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    out.as_mut_ptr(),
                    1,
                    n as isize,
                    false,
                    a.values[a.start(i)..].as_ptr(),
                    a.column_stride as isize,
                    a.row_stride as isize,
                    b.values[b.start(i)..].as_ptr(),
                    b.column_stride as isize,
                    b.row_stride as isize,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism(),
                );
            }
        }
    }
    let mut dims = a_layout.dims().to_vec();
    dims.pop();
    dims.push(n);
    Ok((CpuStorage::F32(values), Shape::from(dims)))
}

/// Matrices of one shape within a slice.
struct Operand<'a> {
    values: &'a [f32],
    offset: usize,
    batch: usize,
    batch_stride: usize,
    rows: usize,
    row_stride: usize,
    columns: usize,
    column_stride: usize,
}

impl<'a> Operand<'a> {
    /// Errors: not one or two dimensions more than a row; an element outside `values`.
    fn new(values: &'a [f32], layout: &Layout) -> Result<Operand<'a>> {
        let (batch, batch_stride, [rows, columns], [row_stride, column_stride]) = match (layout.dims(), layout.stride())
        {
            (&[rows, columns], &[by_row, by_column]) => (1, 0, [rows, columns], [by_row, by_column]),
            (&[batch, rows, columns], &[by_batch, by_row, by_column]) => {
                (batch, by_batch, [rows, columns], [by_row, by_column])
            }
            (dims, _) => bail!("a product of matrices {dims:?}"),
        };
        let offset = layout.start_offset();
        let dims = [(batch, batch_stride), (rows, row_stride), (columns, column_stride)];
        if dims.iter().all(|(n, _)| *n > 0) {
            let last = dims.iter().try_fold(offset, |sum, (n, stride)| sum.checked_add((n - 1).checked_mul(*stride)?));
            if last.is_none_or(|last| last >= values.len()) {
                bail!("a matrix {:?} reaches beyond its {} values", layout.dims(), values.len())
            }
        }
        Ok(Operand { values, offset, batch, batch_stride, rows, row_stride, columns, column_stride })
    }

    fn start(&self, batch: usize) -> usize {
        self.offset + batch * self.batch_stride
    }
}

/// All threads of the pool, but no more than there are cores to compute.
fn parallelism() -> Parallelism {
    static CORES: OnceLock<usize> = OnceLock::new();
    match rayon::current_num_threads().min(*CORES.get_or_init(candle_core::utils::get_num_threads)) {
        1 => Parallelism::None,
        threads => Parallelism::Rayon(threads),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Storage, Tensor};

    use super::*;

    fn times(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let ((a, la), (b, lb)) = (a.storage_and_layout(), b.storage_and_layout());
        let (Storage::Cpu(a), Storage::Cpu(b)) = (&*a, &*b) else { unreachable!() };
        let (CpuStorage::F32(values), shape) = product(a, la, b, lb)? else { unreachable!() };
        Tensor::from_vec(values, shape, &Device::Cpu)
    }

    fn random(dims: &[usize]) -> Tensor {
        Tensor::randn(0f32, 1.0, dims, &Device::Cpu).unwrap()
    }

    /// Against sums in f64.
    fn check(a: &Tensor, b: &Tensor) {
        let got = times(a, b).unwrap();
        let wide = |t: &Tensor| {
            let t = if t.rank() == 2 { t.unsqueeze(0).unwrap() } else { t.clone() };
            t.to_dtype(candle_core::DType::F64).unwrap().to_vec3::<f64>().unwrap()
        };
        let (a, b, got) = (wide(a), wide(b), wide(&got));
        for (batch, rows) in got.iter().enumerate() {
            for (i, row) in rows.iter().enumerate() {
                for (j, value) in row.iter().enumerate() {
                    let terms = a[batch][i].iter().zip(&b[batch]).map(|(x, column)| x * column[j]);
                    let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
                    assert!((value - sum).abs() <= 1e-6 * size + 1e-12, "{batch} {i} {j}: {value} is not {sum}");
                }
            }
        }
    }

    #[test]
    fn odd_sizes_and_any_layout_give_the_sums() {
        for (m, k, n) in [(1, 1, 1), (1, 7, 5), (3, 1, 2), (17, 33, 9), (2, 257, 31), (65, 16, 1), (48, 100, 130)] {
            let (a, b) = (random(&[m, k]), random(&[k, n]));
            check(&a, &b);
            check(&random(&[k, m]).t().unwrap(), &random(&[n, k]).t().unwrap());
            let padded = random(&[m + 2, k + 3]);
            check(&padded.narrow(0, 1, m).unwrap().narrow(1, 2, k).unwrap(), &b);
            let (a, b) = (random(&[3, m, k]), random(&[3, n, k]));
            check(&a, &b.t().unwrap());
            check(&a.narrow(0, 1, 2).unwrap(), &random(&[k, 2, n]).transpose(0, 1).unwrap());
        }
    }

    #[test]
    fn a_product_of_nothing_is_zero() {
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(times(&random(&[2, 0]), &random(&[0, 3])).unwrap()), [0.0; 6]);
        assert_eq!(times(&random(&[0, 4]), &random(&[4, 3])).unwrap().dims(), [0, 3]);
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        for (a, b) in [(vec![2, 3], vec![4, 2]), (vec![2, 3, 4], vec![3, 4, 2]), (vec![2, 3], vec![1, 3, 2])] {
            assert!(times(&random(&a), &random(&b)).is_err(), "{a:?} {b:?}");
        }
        assert!(times(&random(&[3]), &random(&[3])).is_err());
        let (values, layout) = (CpuStorage::F32(vec![1.0; 11]), Layout::contiguous((3, 4)));
        let other = CpuStorage::F32(vec![1.0; 4]);
        assert!(product(&values, &layout, &other, &Layout::contiguous((4, 1))).is_err(), "one value short");
    }

    #[test]
    fn threads_change_no_bit() {
        let (a, b) = (random(&[70, 300]), random(&[300, 520]));
        let in_pool = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| times(&a, &b).unwrap().to_vec2::<f32>().unwrap())
        };
        assert_eq!(in_pool(1), in_pool(3));
    }
}
