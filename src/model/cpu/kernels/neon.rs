//! NEON: four registers a value; products of bytes in sixteen bits, added by pairs.

use std::arch::aarch64::*;
use std::array::from_fn;

use half::f16;

use super::{Isa, LANES, Line};

proof! {
    /// The proof that the processor has NEON.
    Neon, is_aarch64_feature_detected: "neon"
}

impl Isa for Neon {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];

    const WIDEST: usize = 6;
    const GROUPS: usize = 1;
    const OFFSET: f32 = 0.0;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [op!(vdupq_n_f32(x)); 4]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        from_fn(|i| op!(vld1q_f32(x[4 * i..4 * i + 4].as_ptr())))
    }

    #[inline(always)]
    fn store(self, x: Self::F) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
            op!(vst1q_f32(out.as_mut_ptr(), x));
        }
        out
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| op!(vmulq_f32(a[i], b[i])))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| op!(vfmaq_f32(c[i], a[i], b[i])))
    }

    #[inline(always)]
    fn narrow(self, x: Self::F) -> [u16; LANES] {
        self.store(x).map(|x| f16::from_f32(x).to_bits())
    }

    #[inline(always)]
    fn half(self, x: &[u16; LANES]) -> Self::F {
        self.load(&x.map(|bits| f16::from_bits(bits).to_f32()))
    }

    #[inline(always)]
    fn brain(self, x: &[u16; LANES]) -> Self::F {
        from_fn(|i| op!(vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(x[4 * i..4 * i + 4].as_ptr())))))
    }

    #[inline(always)]
    fn unsigned(self, x: &[u8; LANES]) -> Self::F {
        self.load(&x.map(f32::from))
    }

    #[inline(always)]
    fn signed(self, x: &[u8; LANES]) -> Self::F {
        self.load(&x.map(|x| f32::from(x as i8)))
    }

    #[inline(always)]
    fn bytes(self, line: &Line) -> Self::B {
        from_fn(|i| op!(vld1q_u8(line.0[16 * i..16 * i + 16].as_ptr())))
    }

    #[inline(always)]
    fn shr(self, x: Self::B, n: u32, mask: u8) -> Self::B {
        x.map(|x| op!(vandq_u8(vshlq_u8(x, vdupq_n_s8(-(n as i8))), vdupq_n_u8(mask))))
    }

    #[inline(always)]
    fn shl(self, x: Self::B, n: u32, mask: u8) -> Self::B {
        x.map(|x| op!(vandq_u8(vshlq_u8(x, vdupq_n_s8(n as i8)), vdupq_n_u8(mask))))
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        from_fn(|i| op!(vorrq_u8(a[i], b[i])))
    }

    #[inline(always)]
    fn eight(self, line: &Line) -> Self::B {
        self.bytes(line)
    }

    #[inline(always)]
    fn code<const SIGNED: bool>(self, x: Self::B, at: u32) -> Self::F {
        self.float(x.map(|x| {
            let top = op!(vshlq_u32(vreinterpretq_u32_u8(x), vdupq_n_s32(24 - 8 * at as i32)));
            if SIGNED {
                op!(vshrq_n_s32::<24>(vreinterpretq_s32_u32(top)))
            } else {
                op!(vreinterpretq_s32_u32(vshrq_n_u32::<24>(top)))
            }
        }))
    }

    #[inline(always)]
    fn zero(self) -> Self::I {
        [op!(vdupq_n_s32(0)); 4]
    }

    /// Codes of fewer than eight bits are the same numbers signed.
    #[inline(always)]
    fn dot(self, _: u32, mut acc: Self::I, w: [Self::B; 4], x: &[i8; 16]) -> Self::I {
        for (w, x) in w.iter().zip(x.as_chunks::<4>().0) {
            let x = i32::from_le_bytes(x.map(|x| x as u8));
            let x = op!(vreinterpretq_s8_s32(vdupq_n_s32(x)));
            for (acc, w) in acc.iter_mut().zip(w) {
                let w = op!(vreinterpretq_s8_u8(*w));
                let low = op!(vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x))));
                let high = op!(vpaddlq_s16(vmull_high_s8(w, x)));
                *acc = op!(vaddq_s32(*acc, vpaddq_s32(low, high)));
            }
        }
        acc
    }

    #[inline(always)]
    fn largest(self, a: Self::F, x: Self::F) -> Self::F {
        from_fn(|i| op!(vmaxq_f32(a[i], vabsq_f32(x[i]))))
    }

    #[inline(always)]
    fn pair(self, a: Self::F, b: Self::F) -> Line {
        let mut line = Line([0; 64]);
        for (i, out) in line.0.chunks_exact_mut(16).enumerate() {
            let (a, b) = (op!(vcvtnq_s32_f32(a[i])), op!(vcvtnq_s32_f32(b[i])));
            let both = op!(vorrq_s32(vandq_s32(a, vdupq_n_s32(0xffff)), vshlq_n_s32::<16>(b)));
            op!(vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_s32(both)));
        }
        line
    }

    #[inline(always)]
    fn dot_pair(self, mut acc: Self::I, w: Self::B, x: f32) -> Self::I {
        let x = op!(vreinterpretq_s16_f32(vdupq_n_f32(x)));
        for (acc, w) in acc.iter_mut().zip(w) {
            let w = op!(vreinterpretq_s16_u8(w));
            let low = op!(vmull_s16(vget_low_s16(w), vget_low_s16(x)));
            let high = op!(vmull_high_s16(w, x));
            *acc = op!(vaddq_s32(*acc, vpaddq_s32(low, high)));
        }
        acc
    }

    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        x.map(|x| op!(vcvtq_f32_s32(x)))
    }
}
