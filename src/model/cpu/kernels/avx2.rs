//! AVX2 with FMA: two registers a value; products of bytes by pairs, in sixteen bits as long as they fit.

use std::arch::x86_64::*;

use super::{Floats, Halves, Isa, LANES, Line};

proof! {
    /// The proof that the processor has AVX2, FMA and F16C.
    Avx2, is_x86_feature_detected: "avx2" "fma" "f16c"
}

/// Both halves of an array of sixteen.
#[inline(always)]
fn halves<T>(x: &[T; LANES]) -> [&[T]; 2] {
    let (low, high) = x.split_at(LANES / 2);
    [low, high]
}

impl Isa for Avx2 {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];

    const WIDEST: usize = 6;
    const GROUPS: usize = 1;
    const WORDS: bool = true;
    const OFFSET: f32 = 0.0;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [op!(_mm256_set1_ps(x)); 2]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        halves(x).map(|x| op!(_mm256_loadu_ps(x.as_ptr())))
    }

    #[inline(always)]
    fn store(self, x: Self::F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        for (out, x) in out.as_chunks_mut::<8>().0.iter_mut().zip(x) {
            op!(_mm256_storeu_ps(out.as_mut_ptr(), x));
        }
        out
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        [op!(_mm256_mul_ps(a[0], b[0])), op!(_mm256_mul_ps(a[1], b[1]))]
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        [op!(_mm256_fmadd_ps(a[0], b[0], c[0])), op!(_mm256_fmadd_ps(a[1], b[1], c[1]))]
    }

    #[inline(always)]
    fn narrow(self, x: Self::F) -> [u16; LANES] {
        let mut out = [0; LANES];
        for (out, x) in out.as_chunks_mut::<8>().0.iter_mut().zip(x) {
            let narrow = op!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
            op!(_mm_storeu_si128(out.as_mut_ptr().cast(), narrow));
        }
        out
    }

    #[inline(always)]
    fn half(self, x: &[u16; LANES]) -> Self::F {
        halves(x).map(|x| op!(_mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast()))))
    }

    #[inline(always)]
    fn brain(self, x: &[u16; LANES]) -> Self::F {
        halves(x).map(|x| {
            op!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast())))))
        })
    }

    #[inline(always)]
    fn unsigned(self, x: &[u8; LANES]) -> Self::F {
        self.float(halves(x).map(|x| op!(_mm256_cvtepu8_epi32(_mm_loadl_epi64(x.as_ptr().cast())))))
    }

    #[inline(always)]
    fn signed(self, x: &[u8; LANES]) -> Self::F {
        self.float(halves(x).map(|x| op!(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast())))))
    }

    #[inline(always)]
    fn bytes(self, line: &Line) -> Self::B {
        let (low, high) = line.0.split_at(32);
        [low, high].map(|x| op!(_mm256_loadu_si256(x.as_ptr().cast())))
    }

    #[inline(always)]
    fn shr(self, x: Self::B, n: u32, mask: u8) -> Self::B {
        x.map(|x| op!(_mm256_and_si256(_mm256_srl_epi16(x, _mm_cvtsi32_si128(n as i32)), _mm256_set1_epi8(mask as i8))))
    }

    #[inline(always)]
    fn shl(self, x: Self::B, n: u32, mask: u8) -> Self::B {
        x.map(|x| op!(_mm256_and_si256(_mm256_sll_epi16(x, _mm_cvtsi32_si128(n as i32)), _mm256_set1_epi8(mask as i8))))
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        [op!(_mm256_or_si256(a[0], b[0])), op!(_mm256_or_si256(a[1], b[1]))]
    }

    #[inline(always)]
    fn eight(self, line: &Line) -> Self::B {
        self.bytes(line)
    }

    #[inline(always)]
    fn code<const SIGNED: bool>(self, x: Self::B, at: u32) -> Self::F {
        self.float(x.map(|x| {
            let top = op!(_mm256_sll_epi32(x, _mm_cvtsi32_si128(24 - 8 * at as i32)));
            if SIGNED { op!(_mm256_srai_epi32::<24>(top)) } else { op!(_mm256_srli_epi32::<24>(top)) }
        }))
    }

    #[inline(always)]
    fn zero(self) -> Self::I {
        [op!(_mm256_setzero_si256()); 2]
    }

    #[inline(always)]
    fn dot(self, bits: u32, mut acc: Self::I, w: [Self::B; 4], x: &[i8; 16]) -> Self::I {
        let x: [__m256i; 4] = std::array::from_fn(|group| {
            let x = x.as_chunks::<4>().0[group].map(|x| x as u8);
            op!(_mm256_set1_epi32(i32::from_le_bytes(x)))
        });
        for (half, acc) in acc.iter_mut().enumerate() {
            // A pair of products in sixteen bits.
            let pair = |group: usize| {
                let (w, x) = (w[group][half], x[group]);
                match bits {
                    // |w| ≤ 128 as an unsigned number, its sign with x: at most 2 · 128 · 127 < 2¹⁵.
                    8 => op!(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))),
                    _ => op!(_mm256_maddubs_epi16(w, x)),
                }
            };
            let both = |a, b| op!(_mm256_add_epi16(a, b));
            let mut add = |pairs| {
                *acc = op!(_mm256_add_epi32(*acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
            };
            match bits {
                // Four pairs: at most 4 · 2 · 31 · 127 = 31,496 < 2¹⁵.
                0..=5 => add(both(both(pair(0), pair(1)), both(pair(2), pair(3)))),
                // Two pairs: at most 2 · 2 · 63 · 127 = 32,004 < 2¹⁵.
                6 => [both(pair(0), pair(1)), both(pair(2), pair(3))].into_iter().for_each(add),
                _ => [pair(0), pair(1), pair(2), pair(3)].into_iter().for_each(add),
            }
        }
        acc
    }

    #[inline(always)]
    fn largest(self, a: Self::F, x: Self::F) -> Self::F {
        let sign = op!(_mm256_set1_ps(-0.0));
        [op!(_mm256_max_ps(a[0], _mm256_andnot_ps(sign, x[0]))), op!(_mm256_max_ps(a[1], _mm256_andnot_ps(sign, x[1])))]
    }

    #[inline(always)]
    fn pair(self, a: Self::F, b: Self::F) -> Line {
        let mut line = Line([0; 64]);
        for (half, out) in line.0.chunks_exact_mut(32).enumerate() {
            let (a, b) = (op!(_mm256_cvtps_epi32(a[half])), op!(_mm256_cvtps_epi32(b[half])));
            let low = op!(_mm256_and_si256(a, _mm256_set1_epi32(0xffff)));
            op!(_mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_or_si256(low, _mm256_slli_epi32::<16>(b))));
        }
        line
    }

    #[inline(always)]
    fn dot_pair(self, acc: Self::I, w: Self::B, x: f32) -> Self::I {
        let x = op!(_mm256_castps_si256(_mm256_set1_ps(x)));
        [
            op!(_mm256_add_epi32(acc[0], _mm256_madd_epi16(w[0], x))),
            op!(_mm256_add_epi32(acc[1], _mm256_madd_epi16(w[1], x))),
        ]
    }

    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        x.map(|x| op!(_mm256_cvtepi32_ps(x)))
    }

    #[inline(always)]
    fn fetch<T>(self, x: *const T) {
        op!(_mm_prefetch::<_MM_HINT_T1>(x.cast()));
    }

    /// Two at a time: what one leaves room for the other takes.
    #[inline(always)]
    fn added(self, sums: &[Self::F; LANES]) -> [f32; LANES] {
        let mut by_four = [op!(_mm256_setzero_ps()); 4];
        for four in 0..4 {
            let mut by_two = [op!(_mm256_setzero_pd()); 2];
            for two in 0..2 {
                let ([a, more_a], [b, more_b]) = (sums[4 * four + 2 * two], sums[4 * four + 2 * two + 1]);
                let (a, b) = (op!(_mm256_add_ps(a, more_a)), op!(_mm256_add_ps(b, more_b)));
                let (low, high) = (op!(_mm256_unpacklo_ps(a, b)), op!(_mm256_unpackhi_ps(a, b)));
                by_two[two] = op!(_mm256_castps_pd(_mm256_add_ps(low, high)));
            }
            let [a, b] = by_two;
            let (low, high) = (op!(_mm256_unpacklo_pd(a, b)), op!(_mm256_unpackhi_pd(a, b)));
            // Half by half, the sums of the four.
            by_four[four] = op!(_mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high)));
        }
        let mut both = by_four;
        for two in 0..2 {
            let (a, b) = (by_four[2 * two], by_four[2 * two + 1]);
            let (low, high) = (op!(_mm256_permute2f128_ps::<0x20>(a, b)), op!(_mm256_permute2f128_ps::<0x31>(a, b)));
            both[two] = op!(_mm256_add_ps(low, high));
        }
        self.store([both[0], both[1]])
    }

    /// Eight columns at a time: pairs of rows, then of pairs, then of fours; the rows from the ninth on in the upper halves of
    /// registers.
    #[inline(always)]
    fn turn(self, rows: [&[u8; 64]; LANES], out: &mut [Halves; 2 * LANES]) {
        for (eight, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut both = [op!(_mm256_setzero_si256()); 8];
            for (row, both) in both.iter_mut().enumerate() {
                let (above, below) = (&rows[row][16 * eight..][..16], &rows[8 + row][16 * eight..][..16]);
                let above = op!(_mm_loadu_si128(above.as_ptr().cast()));
                *both = op!(_mm256_set_m128i(_mm_loadu_si128(below.as_ptr().cast()), above));
            }
            let mut by_two = [op!(_mm256_setzero_si256()); 8];
            for pair in 0..4 {
                by_two[2 * pair] = op!(_mm256_unpacklo_epi16(both[2 * pair], both[2 * pair + 1]));
                by_two[2 * pair + 1] = op!(_mm256_unpackhi_epi16(both[2 * pair], both[2 * pair + 1]));
            }
            // Of rows 4i to 4i + 3, at 4i + c: the columns 2c and 2c + 1.
            let mut by_four = [op!(_mm256_setzero_si256()); 8];
            for four in [0, 4] {
                for half in 0..2 {
                    let (a, b) = (by_two[four + half], by_two[four + 2 + half]);
                    by_four[four + 2 * half] = op!(_mm256_unpacklo_epi32(a, b));
                    by_four[four + 2 * half + 1] = op!(_mm256_unpackhi_epi32(a, b));
                }
            }
            for c in 0..4 {
                let (a, b) = (by_four[c], by_four[4 + c]);
                op!(_mm256_storeu_si256(out[2 * c].0.as_mut_ptr().cast(), _mm256_unpacklo_epi64(a, b)));
                op!(_mm256_storeu_si256(out[2 * c + 1].0.as_mut_ptr().cast(), _mm256_unpackhi_epi64(a, b)));
            }
        }
    }

    /// Four squares of eight: pairs of rows, then of pairs, then of the halves of registers.
    #[inline(always)]
    fn transpose(self, rows: &[Floats; LANES]) -> [Floats; LANES] {
        let mut columns = [Floats([0.0; LANES]); LANES];
        for (below, right) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            let mut by_two = [op!(_mm256_setzero_ps()); 8];
            for pair in 0..4 {
                let (a, b) =
                    (&rows[below + 2 * pair].0[right..right + 8], &rows[below + 2 * pair + 1].0[right..right + 8]);
                let (a, b) = (op!(_mm256_loadu_ps(a.as_ptr())), op!(_mm256_loadu_ps(b.as_ptr())));
                by_two[2 * pair] = op!(_mm256_unpacklo_ps(a, b));
                by_two[2 * pair + 1] = op!(_mm256_unpackhi_ps(a, b));
            }
            // Of rows 4i to 4i + 3, at 4i + c: the columns c and 4 + c.
            let mut by_four = [op!(_mm256_setzero_ps()); 8];
            for four in [0, 4] {
                for half in 0..2 {
                    let (a, b) = (by_two[four + half], by_two[four + 2 + half]);
                    let (a, b) = (op!(_mm256_castps_pd(a)), op!(_mm256_castps_pd(b)));
                    by_four[four + 2 * half] = op!(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)));
                    by_four[four + 2 * half + 1] = op!(_mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
                }
            }
            for c in 0..4 {
                let (a, b) = (by_four[c], by_four[4 + c]);
                let both = [op!(_mm256_permute2f128_ps::<0x20>(a, b)), op!(_mm256_permute2f128_ps::<0x31>(a, b))];
                for (half, x) in both.into_iter().enumerate() {
                    let place = &mut columns[right + 4 * half + c].0[below..below + 8];
                    op!(_mm256_storeu_ps(place.as_mut_ptr(), x));
                }
            }
        }
        columns
    }
}
