//! Arithmetic on sixteen lanes, for each kind of processor.
//!
//! [`Isa`] names the few operations that the network's products are made of. Each implementation is a small file, and the
//! only place where its instructions are written; `dot` builds the products from them, once for all. [`Level::run`] compiles
//! a piece of [`Work`] for a processor's instructions and enters it only where [`Level::detect`] has found them.

/// The proof that a processor has some features, made only by `detect`, and the way into code that is compiled for them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! proof {
    ($(#[$doc:meta])* $name:ident, $detected:ident: $($feature:tt)+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name(());

        impl $name {
            pub fn detect() -> Option<$name> {
                let has = $(std::arch::$detected!($feature))&&+;
                has.then_some($name(()))
            }

            pub fn run<W: super::Work>(self, work: W) -> W::Out {
                #[target_feature($(enable = $feature),+)]
                fn inside<W: super::Work>(isa: $name, work: W) -> W::Out {
                    work.run(isa)
                }
                // SAFETY: `self` exists only where `detect` has found every feature that `inside` asks for.
                unsafe { inside(self, work) }
            }
        }
    };
}

/// An instruction of a processor that `detect` has approved of.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! op {
    ($($instruction:tt)+) => {{
        // SAFETY: a proof, which every method of `Isa` takes, exists only where `detect` has found the features. The loads
        // and stores among the instructions stay inside the arrays that they are given, and need no alignment.
        #[allow(unused_unsafe)] // some of them are safe functions
        unsafe { $($instruction)+ }
    }};
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod dot;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
pub(super) mod tests;

use super::turn::columns_of;
use portable::Portable;

/// Rows of a matrix that are computed side by side.
pub const LANES: usize = 16;

/// A line of the processor's cache: for each of sixteen rows the codes of four neighbouring columns.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

/// A number for each of sixteen rows.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub struct Floats(pub [f32; LANES]);

/// An f16 or bf16 number for each of sixteen rows, as its bits.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(32))]
pub struct Halves(pub [u16; LANES]);

/// Sixteen lanes of f32 (`F`), of i32 (`I`), and of four bytes (`B`).
///
/// A value is the proof that the processor has the instructions: only [`Level::detect`] makes one.
pub trait Isa: Copy {
    type F: Copy;
    type I: Copy;
    type B: Copy;

    /// Vectors whose sums the registers hold at once, a value each: 12, 6 or 3.
    const WIDEST: usize;

    /// Groups of sixteen columns whose sums with that many vectors they hold: 1 or 2.
    const GROUPS: usize;

    /// Whether products of sixteen-bit numbers are faster than those of f32.
    const WORDS: bool = false;

    /// What [`eight`](Self::eight) adds to signed codes.
    const OFFSET: f32;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, x: Self::F) -> [f32; LANES];
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b + c
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The bits of the nearest f16 numbers; of two that are as near, of the even one.
    fn narrow(self, x: Self::F) -> [u16; LANES];
    /// From the bits of f16 numbers.
    fn half(self, x: &[u16; LANES]) -> Self::F;
    /// From the bits of bf16 numbers.
    fn brain(self, x: &[u16; LANES]) -> Self::F;
    fn unsigned(self, x: &[u8; LANES]) -> Self::F;
    fn signed(self, x: &[u8; LANES]) -> Self::F;

    fn bytes(self, line: &Line) -> Self::B;
    /// (x >> n) & mask of every byte; the mask keeps no bit that came from a neighbour.
    fn shr(self, x: Self::B, n: u32, mask: u8) -> Self::B;
    /// (x << n) & mask of every byte; the mask keeps no bit that came from a neighbour.
    fn shl(self, x: Self::B, n: u32, mask: u8) -> Self::B;
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// Signed codes of eight bits in the form that [`dot`](Self::dot) takes them in.
    fn eight(self, line: &Line) -> Self::B;
    /// Byte `at` of each lane; as a signed number where `SIGNED`.
    fn code<const SIGNED: bool>(self, x: Self::B, at: u32) -> Self::F;

    fn zero(self) -> Self::I;
    /// acc + Σ over four times four bytes of w · x: unsigned codes of so many bits, or of eight as `eight` gives them, and
    /// signed x above −128.
    fn dot(self, bits: u32, acc: Self::I, w: [Self::B; 4], x: &[i8; 16]) -> Self::I;
    fn float(self, x: Self::I) -> Self::F;

    /// The larger of `a` and |x|; either where x is not a number.
    fn largest(self, a: Self::F, x: Self::F) -> Self::F;
    /// The nearest whole numbers of a and b, side by side in sixteen bits each.
    fn pair(self, a: Self::F, b: Self::F) -> Line;
    /// acc + the products of both numbers of a pair with those of `x`, which a pair's bits make.
    fn dot_pair(self, acc: Self::I, w: Self::B, x: f32) -> Self::I;

    /// Has the second cache fetch what will soon be read; nothing where no memory is.
    #[inline(always)]
    fn fetch<T>(self, _: *const T) {}

    /// The sum of each one's lanes.
    #[inline(always)]
    fn added(self, sums: &[Self::F; LANES]) -> [f32; LANES] {
        let mut lanes = self.turned(sums);
        let mut left = LANES;
        while left > 1 {
            left /= 2;
            for at in 0..left {
                let (a, b) = (self.load(&lanes[at].0), self.load(&lanes[at + left].0));
                lanes[at].0 = self.store(self.fma(a, self.splat(1.0), b));
            }
        }
        lanes[0].0
    }

    /// The largest of each one's lanes, of numbers that are not negative.
    #[inline(always)]
    fn largest_of(self, all: &[Self::F; LANES]) -> [f32; LANES] {
        let mut largest = self.splat(0.0);
        for lane in &self.turned(all) {
            largest = self.largest(largest, self.load(&lane.0));
        }
        self.store(largest)
    }

    /// The first lane of all, then the second.
    #[inline(always)]
    fn turned(self, all: &[Self::F; LANES]) -> [Floats; LANES] {
        let mut rows = [Floats([0.0; LANES]); LANES];
        for (row, one) in rows.iter_mut().zip(all) {
            row.0 = self.store(*one);
        }
        self.transpose(&rows)
    }

    /// Sixteen rows of thirty-two numbers of sixteen bits, the lowest byte first, to columns.
    #[inline(always)]
    fn turn(self, rows: [&[u8; 64]; LANES], out: &mut [Halves; 2 * LANES]) {
        for (half, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut numbers = [[0; LANES]; LANES];
            for (numbers, row) in numbers.iter_mut().zip(rows) {
                for (number, bytes) in numbers.iter_mut().zip(&row.as_chunks().0[half * LANES..]) {
                    *number = u16::from_le_bytes(*bytes);
                }
            }
            *out = columns_of(&numbers);
        }
    }

    /// Sixteen rows of sixteen, to columns.
    #[inline(always)]
    fn transpose(self, rows: &[Floats; LANES]) -> [Floats; LANES] {
        let mut columns = [Floats([0.0; LANES]); LANES];
        for (at, row) in rows.iter().enumerate() {
            for (column, x) in columns.iter_mut().zip(row.0) {
                column.0[at] = x;
            }
        }
        columns
    }
}

/// Something to compute, in code that is compiled for each kind of processor. `run` has to be `#[inline(always)]`.
pub trait Work {
    type Out;
    fn run<I: Isa>(self, isa: I) -> Self::Out;
}

struct Sizes;

impl Work for Sizes {
    type Out = (usize, usize, bool);

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> (usize, usize, bool) {
        (I::WIDEST, I::GROUPS, I::WORDS)
    }
}

/// The instructions that this process computes with.
#[derive(Debug, Clone, Copy)]
pub enum Level {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

impl Level {
    /// For what happens too rarely to be worth more.
    pub const PLAIN: Level = Level::Portable(Portable);

    /// The best that the processor has.
    pub fn detect() -> Level {
        Self::all().pop().unwrap_or(Level::PLAIN)
    }

    /// All that the processor has, the best last.
    pub fn all() -> Vec<Level> {
        let mut all = vec![Level::PLAIN];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx2::Avx2::detect().map(Level::Avx2));
            all.extend(avx512::Avx512::detect().map(Level::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(neon::Neon::detect().map(Level::Neon));
        all
    }

    /// [`Isa::WIDEST`]
    #[cfg(test)]
    pub fn widest(self) -> usize {
        self.run(Sizes).0
    }

    /// [`Isa::GROUPS`]
    pub fn groups(self) -> usize {
        self.run(Sizes).1
    }

    /// [`Isa::WORDS`]
    pub fn words(self) -> bool {
        self.run(Sizes).2
    }

    pub fn run<W: Work>(self, work: W) -> W::Out {
        match self {
            Level::Portable(isa) => work.run(isa),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(isa) => isa.run(work),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(isa) => isa.run(work),
            #[cfg(target_arch = "aarch64")]
            Level::Neon(isa) => isa.run(work),
        }
    }
}
