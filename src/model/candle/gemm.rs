//! Products of matrices on the CPU, without what candle's own takes beside them.
//!
//! candle asks at every product how many cores there are, and on Linux that reads and parses `/proc/cpuinfo`: half of a
//! small model's time. The product itself is the same: the `gemm` crate's.

use std::sync::OnceLock;

use candle_core::{CpuStorage, Layout, Result, Shape, bail};

use super::product::{self, Parallelism, View};

/// a · b for a `[…, m, k]` and b `[…, k, n]` in any layout, with the same dimensions before them; f32.
///
/// Runs in the rayon pool that it is called from.
pub fn product(a: &CpuStorage, a_layout: &Layout, b: &CpuStorage, b_layout: &Layout) -> Result<(CpuStorage, Shape)> {
    let (CpuStorage::F32(a), CpuStorage::F32(b)) = (a, b) else { bail!("a product on the CPU is of f32 values") };
    let ([.., m, k], [.., inner, n]) = (a_layout.dims(), b_layout.dims()) else {
        bail!("a product of less than matrices")
    };
    let batch = &a_layout.dims()[..a_layout.dims().len() - 2];
    if inner != k || batch != &b_layout.dims()[..b_layout.dims().len() - 2] {
        bail!("a product of {:?} and {:?}", a_layout.dims(), b_layout.dims())
    }
    let (a, b) = (matrices(a, a_layout)?, matrices(b, b_layout)?);
    let mut values = vec![0f32; a.len() * m * n];
    for ((a, b), out) in a.into_iter().zip(b).zip(values.chunks_exact_mut((m * n).max(1))) {
        product::product(out, a, b, parallelism());
    }
    Ok((CpuStorage::F32(values), Shape::from([batch, &[*m, *n]].concat())))
}

/// The matrices of one or more dimensions within a slice. Errors: not two or three dimensions; an element outside `values`.
fn matrices<'a>(values: &'a [f32], layout: &Layout) -> Result<Vec<View<'a>>> {
    let (batch, batch_stride, shape, strides) = match (layout.dims(), layout.stride()) {
        (&[rows, columns], &[by_row, by_column]) => (1, 0, [rows, columns], [by_row, by_column]),
        (&[batch, rows, columns], &[by_batch, by_row, by_column]) => {
            (batch, by_batch, [rows, columns], [by_row, by_column])
        }
        (dims, _) => bail!("a product of matrices {dims:?}"),
    };
    let at = |i: usize| {
        let start = layout.start_offset().checked_add(i.checked_mul(batch_stride)?)?;
        View::within(values.get(start..)?, shape, strides)
    };
    let all: Option<Vec<View<'_>>> = (0..batch).map(at).collect();
    match all {
        Some(all) => Ok(all),
        None => bail!("a matrix {:?} reaches beyond its {} values", layout.dims(), values.len()),
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
