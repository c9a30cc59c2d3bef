//! AVX-512 with VNNI: a register a value, four products a lane in one instruction.

use std::arch::x86_64::*;

use super::{Floats, Halves, Isa, LANES, Line};

proof! {
    /// The proof that the processor has AVX-512 F, BW, VL and VNNI, AVX2, FMA and F16C.
    Avx512, is_x86_feature_detected: "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx2" "fma" "f16c"
}

/// The lanes of each of sixteen registers put together by `$with`, two registers at a time: what one leaves room for the other
/// takes.
macro_rules! folded {
    ($self:ident, $all:ident, $with:ident) => {{
        let mut by_four = [op!(_mm512_setzero_ps()); 4];
        for four in 0..4 {
            let mut by_two = [op!(_mm512_setzero_pd()); 2];
            for two in 0..2 {
                let (a, b) = ($all[4 * four + 2 * two], $all[4 * four + 2 * two + 1]);
                let (low, high) = (op!(_mm512_unpacklo_ps(a, b)), op!(_mm512_unpackhi_ps(a, b)));
                by_two[two] = op!(_mm512_castps_pd($with(low, high)));
            }
            let [a, b] = by_two;
            let (low, high) = (op!(_mm512_unpacklo_pd(a, b)), op!(_mm512_unpackhi_pd(a, b)));
            // Quarter by quarter, those of the four.
            by_four[four] = op!($with(_mm512_castpd_ps(low), _mm512_castpd_ps(high)));
        }
        let [a, b, c, d] = by_four;
        let mut by_eight = [a; 2];
        for (eight, [a, b]) in by_eight.iter_mut().zip([[a, b], [c, d]]) {
            *eight = op!($with(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)));
        }
        let [a, b] = by_eight;
        $self.store(op!($with(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))))
    }};
}

impl Isa for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    const WIDEST: usize = 12;
    const GROUPS: usize = 2;
    const WORDS: bool = true;
    const OFFSET: f32 = 128.0;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        op!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        op!(_mm512_loadu_ps(x.as_ptr()))
    }

    #[inline(always)]
    fn store(self, x: Self::F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        op!(_mm512_storeu_ps(out.as_mut_ptr(), x));
        out
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn narrow(self, x: Self::F) -> [u16; LANES] {
        let mut out = [0; LANES];
        op!(_mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)));
        out
    }

    #[inline(always)]
    fn half(self, x: &[u16; LANES]) -> Self::F {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }

    #[inline(always)]
    fn brain(self, x: &[u16; LANES]) -> Self::F {
        op!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())))))
    }

    #[inline(always)]
    fn unsigned(self, x: &[u8; LANES]) -> Self::F {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }

    #[inline(always)]
    fn signed(self, x: &[u8; LANES]) -> Self::F {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }

    #[inline(always)]
    fn bytes(self, line: &Line) -> Self::B {
        op!(_mm512_loadu_si512(line.0.as_ptr().cast()))
    }

    #[inline(always)]
    fn shr(self, x: Self::B, n: u32, mask: u8) -> Self::B {
        op!(_mm512_and_si512(_mm512_srl_epi16(x, _mm_cvtsi32_si128(n as i32)), _mm512_set1_epi8(mask as i8)))
    }

    #[inline(always)]
    fn shl(self, x: Self::B, n: u32, mask: u8) -> Self::B {
        op!(_mm512_and_si512(_mm512_sll_epi16(x, _mm_cvtsi32_si128(n as i32)), _mm512_set1_epi8(mask as i8)))
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        op!(_mm512_or_si512(a, b))
    }

    /// The instruction takes unsigned codes: 128 is added to each.
    #[inline(always)]
    fn eight(self, line: &Line) -> Self::B {
        op!(_mm512_xor_si512(self.bytes(line), _mm512_set1_epi8(-128)))
    }

    #[inline(always)]
    fn code<const SIGNED: bool>(self, x: Self::B, at: u32) -> Self::F {
        let top = op!(_mm512_sll_epi32(x, _mm_cvtsi32_si128(24 - 8 * at as i32)));
        let code = if SIGNED { op!(_mm512_srai_epi32::<24>(top)) } else { op!(_mm512_srli_epi32::<24>(top)) };
        self.float(code)
    }

    #[inline(always)]
    fn zero(self) -> Self::I {
        op!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn dot(self, _: u32, mut acc: Self::I, w: [Self::B; 4], x: &[i8; 16]) -> Self::I {
        for (w, x) in w.into_iter().zip(x.as_chunks::<4>().0) {
            let x = i32::from_le_bytes(x.map(|x| x as u8));
            acc = op!(_mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)));
        }
        acc
    }

    #[inline(always)]
    fn largest(self, a: Self::F, x: Self::F) -> Self::F {
        op!(_mm512_max_ps(a, _mm512_abs_ps(x)))
    }

    #[inline(always)]
    fn pair(self, a: Self::F, b: Self::F) -> Line {
        let (a, b) = (op!(_mm512_cvtps_epi32(a)), op!(_mm512_cvtps_epi32(b)));
        let both = op!(_mm512_or_si512(_mm512_and_si512(a, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32::<16>(b)));
        let mut line = Line([0; 64]);
        op!(_mm512_storeu_si512(line.0.as_mut_ptr().cast(), both));
        line
    }

    #[inline(always)]
    fn dot_pair(self, acc: Self::I, w: Self::B, x: f32) -> Self::I {
        op!(_mm512_dpwssd_epi32(acc, w, _mm512_castps_si512(_mm512_set1_ps(x))))
    }

    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        op!(_mm512_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn fetch<T>(self, x: *const T) {
        op!(_mm_prefetch::<_MM_HINT_T1>(x.cast()));
    }

    #[inline(always)]
    fn added(self, sums: &[Self::F; LANES]) -> [f32; LANES] {
        folded!(self, sums, _mm512_add_ps)
    }

    #[inline(always)]
    fn largest_of(self, all: &[Self::F; LANES]) -> [f32; LANES] {
        folded!(self, all, _mm512_max_ps)
    }

    /// Pairs of rows, then of pairs, then of fours, then of the quarters of registers.
    #[inline(always)]
    fn turn(self, rows: [&[u8; 64]; LANES], out: &mut [Halves; 2 * LANES]) {
        let mut by_two = [op!(_mm512_setzero_si512()); LANES];
        for pair in 0..8 {
            let (a, b) = (rows[2 * pair], rows[2 * pair + 1]);
            let (a, b) = (op!(_mm512_loadu_si512(a.as_ptr().cast())), op!(_mm512_loadu_si512(b.as_ptr().cast())));
            by_two[2 * pair] = op!(_mm512_unpacklo_epi16(a, b));
            by_two[2 * pair + 1] = op!(_mm512_unpackhi_epi16(a, b));
        }
        // Of rows 4i to 4i + 3, at 4i + c: the columns 2c and 2c + 1 of each eight.
        let mut by_four = [op!(_mm512_setzero_si512()); LANES];
        for four in (0..LANES).step_by(4) {
            for half in 0..2 {
                let (a, b) = (by_two[four + half], by_two[four + 2 + half]);
                by_four[four + 2 * half] = op!(_mm512_unpacklo_epi32(a, b));
                by_four[four + 2 * half + 1] = op!(_mm512_unpackhi_epi32(a, b));
            }
        }
        let low = op!(_mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0));
        let high = op!(_mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4));
        for c in 0..8 {
            let [a, b, x, y] = [0, 4, 8, 12].map(|four| by_four[four + c / 2]);
            // Of rows 0 to 7 and 8 to 15: the columns c, 8 + c, 16 + c, 24 + c.
            let (above, below) = match c % 2 {
                0 => (op!(_mm512_unpacklo_epi64(a, b)), op!(_mm512_unpacklo_epi64(x, y))),
                _ => (op!(_mm512_unpackhi_epi64(a, b)), op!(_mm512_unpackhi_epi64(x, y))),
            };
            for (half, by) in [low, high].into_iter().enumerate() {
                let both = op!(_mm512_permutex2var_epi64(above, by, below));
                let left = op!(_mm512_castsi512_si256(both));
                let right = op!(_mm512_extracti64x4_epi64::<1>(both));
                op!(_mm256_storeu_si256(out[16 * half + c].0.as_mut_ptr().cast(), left));
                op!(_mm256_storeu_si256(out[16 * half + 8 + c].0.as_mut_ptr().cast(), right));
            }
        }
    }

    /// Pairs of rows, then of pairs, then of the quarters of registers.
    #[inline(always)]
    fn transpose(self, rows: &[Floats; LANES]) -> [Floats; LANES] {
        let mut by_two = [op!(_mm512_setzero_ps()); LANES];
        for pair in 0..8 {
            let (a, b) = (self.load(&rows[2 * pair].0), self.load(&rows[2 * pair + 1].0));
            by_two[2 * pair] = op!(_mm512_unpacklo_ps(a, b));
            by_two[2 * pair + 1] = op!(_mm512_unpackhi_ps(a, b));
        }
        // Of rows 4i to 4i + 3, at 4i + c: the columns c, 4 + c, 8 + c, 12 + c.
        let mut by_four = [op!(_mm512_setzero_ps()); LANES];
        for four in (0..LANES).step_by(4) {
            for half in 0..2 {
                let (a, b) = (by_two[four + half], by_two[four + 2 + half]);
                let (a, b) = (op!(_mm512_castps_pd(a)), op!(_mm512_castps_pd(b)));
                by_four[four + 2 * half] = op!(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)));
                by_four[four + 2 * half + 1] = op!(_mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
            }
        }
        let mut columns = [Floats([0.0; LANES]); LANES];
        for c in 0..4 {
            let [a, b, x, y] = [by_four[c], by_four[4 + c], by_four[8 + c], by_four[12 + c]];
            let even = [op!(_mm512_shuffle_f32x4::<0x88>(a, b)), op!(_mm512_shuffle_f32x4::<0x88>(x, y))];
            let odd = [op!(_mm512_shuffle_f32x4::<0xdd>(a, b)), op!(_mm512_shuffle_f32x4::<0xdd>(x, y))];
            columns[c] = Floats(self.store(op!(_mm512_shuffle_f32x4::<0x88>(even[0], even[1]))));
            columns[8 + c] = Floats(self.store(op!(_mm512_shuffle_f32x4::<0xdd>(even[0], even[1]))));
            columns[4 + c] = Floats(self.store(op!(_mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]))));
            columns[12 + c] = Floats(self.store(op!(_mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]))));
        }
        columns
    }
}
