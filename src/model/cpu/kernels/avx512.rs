//! AVX-512 with VNNI: a register a value, four products a lane in one instruction.

use std::arch::x86_64::*;

use super::{Isa, LANES, Line};

proof! {
    /// The proof that the processor has AVX-512 F, BW, VL and VNNI, AVX2, FMA and F16C.
    Avx512, is_x86_feature_detected: "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx2" "fma" "f16c"
}

impl Isa for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;

    const WIDEST: usize = 12;
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
    fn float(self, x: Self::I) -> Self::F {
        op!(_mm512_cvtepi32_ps(x))
    }
}
