//! The operations in plain Rust: for processors without a file of their own, and what the others are tested against.

use std::array::from_fn;

use half::{bf16, f16};

use super::{Isa, LANES, Line};

/// Its larger operations stay calls: unrolled in every product they would take minutes to compile.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

impl Isa for Portable {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 64];

    const WIDEST: usize = 3;
    const GROUPS: usize = 1;
    const OFFSET: f32 = 0.0;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F {
        *x
    }

    #[inline(always)]
    fn store(self, x: Self::F) -> [f32; LANES] {
        x
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // In two roundings: `mul_add` is a slow call on processors without the instruction.
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(never)]
    fn narrow(self, x: Self::F) -> [u16; LANES] {
        x.map(|x| f16::from_f32(x).to_bits())
    }

    #[inline(never)]
    fn half(self, x: &[u16; LANES]) -> Self::F {
        x.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(never)]
    fn brain(self, x: &[u16; LANES]) -> Self::F {
        x.map(|bits| bf16::from_bits(bits).to_f32())
    }

    #[inline(never)]
    fn unsigned(self, x: &[u8; LANES]) -> Self::F {
        x.map(f32::from)
    }

    #[inline(never)]
    fn signed(self, x: &[u8; LANES]) -> Self::F {
        x.map(|x| f32::from(x as i8))
    }

    #[inline(always)]
    fn bytes(self, line: &Line) -> Self::B {
        line.0
    }

    #[inline(never)]
    fn shr(self, x: Self::B, n: u32, mask: u8) -> Self::B {
        x.map(|x| (x >> n) & mask)
    }

    #[inline(never)]
    fn shl(self, x: Self::B, n: u32, mask: u8) -> Self::B {
        x.map(|x| (x << n) & mask)
    }

    #[inline(never)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn eight(self, line: &Line) -> Self::B {
        line.0
    }

    #[inline(never)]
    fn code<const SIGNED: bool>(self, x: Self::B, at: u32) -> Self::F {
        from_fn(|lane| {
            let byte = x[4 * lane + at as usize];
            if SIGNED { f32::from(byte as i8) } else { f32::from(byte) }
        })
    }

    #[inline(always)]
    fn zero(self) -> Self::I {
        [0; LANES]
    }

    #[inline(never)]
    fn dot(self, bits: u32, mut acc: Self::I, w: [Self::B; 4], x: &[i8; 16]) -> Self::I {
        for (w, x) in w.iter().zip(x.as_chunks::<4>().0) {
            for lane in 0..LANES {
                for (at, x) in x.iter().enumerate() {
                    let w = w[4 * lane + at];
                    let w = if bits == 8 { i32::from(w as i8) } else { i32::from(w) };
                    acc[lane] += w * i32::from(*x);
                }
            }
        }
        acc
    }

    #[inline(never)]
    fn largest(self, a: Self::F, x: Self::F) -> Self::F {
        from_fn(|i| a[i].max(x[i].abs()))
    }

    #[inline(never)]
    fn pair(self, a: Self::F, b: Self::F) -> Line {
        let mut line = Line([0; 64]);
        for (i, out) in line.0.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let [a, b] = [a[i], b[i]].map(|x| (x.round_ties_even() as i16).to_le_bytes());
            *out = [a[0], a[1], b[0], b[1]];
        }
        line
    }

    #[inline(never)]
    fn dot_pair(self, acc: Self::I, w: Self::B, x: f32) -> Self::I {
        let word = |bytes: &[u8]| i32::from(i16::from_le_bytes([bytes[0], bytes[1]]));
        let x = x.to_bits().to_le_bytes();
        from_fn(|i| {
            let w = &w[4 * i..4 * i + 4];
            acc[i] + word(&w[..2]) * word(&x[..2]) + word(&w[2..]) * word(&x[2..])
        })
    }

    #[inline(always)]
    fn float(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
}
