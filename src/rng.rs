//! Counter-based random numbers. Every number is a pure function of (seed, purpose, step, logical rank, index): there is
//! no generator state to save, and nothing depends on which process asks, or in which order.
//!
//! Source: Philox4x32-10, Salmon et al., *Parallel random numbers: as easy as 1, 2, 3* (SC 2011).

use crate::layout::LogicalRank;
use crate::vector::vectorised;

/// What a stream of numbers is for. Streams of different purposes never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Initial weights of the student.
    StudentInit = 1,
    /// Initial weights of the generator.
    GeneratorInit = 2,
    /// Latent vectors z.
    Latent = 3,
    /// Target labels y.
    Labels = 4,
    /// Augmented views inside the inversion loop; the step is the inner step.
    InversionView = 5,
    /// Position of each draw inside its stratum.
    Draw = 6,
    /// Which stored view a draw uses, or the view itself when none is stored.
    DrawView = 7,
    /// Geometry of the stored views of a sample; the index is the sample's id.
    StoredView = 8,
    /// Order of real data in an epoch.
    Shuffle = 9,
    /// Which samples leave the buffer under `replay.replace = "random"`.
    Replace = 10,
    /// Weights of the generator that are drawn anew at its reset; the step is the round, then the slot.
    GeneratorReset = 11,
    /// Latent vectors of images made for one student step.
    FreshLatent = 12,
    /// Start weights of a copy of the generator; the step is the round, then the slot.
    GeneratorStart = 13,
    /// Initial weights of the contrastive head.
    ContrastInit = 14,
    /// Which remembered features an inner step is set against; the step is the round, then the inner step.
    Negatives = 15,
    /// Local views of the contrastive loss; the step is the round, then the inner step.
    LocalView = 16,
    /// Pixels that an inversion starts from.
    Pixels = 17,
    /// Latent vectors of images made for a picture; the step is the round.
    Picture = 18,
    /// Dropout masks of a student step.
    Dropout = 20,
    /// Where real images that are larger than a network's are cut.
    Crop = 21,
    /// Made scenes; the step is the scene's number and its split.
    Scene = 22,
    /// Latent vectors of images on which student and teacher are compared; the step is the batch.
    Agreement = 23,
    /// Places round which an image's regions lie.
    Layout = 24,
    /// Points of a random sweep; the step is the point, the index the axis.
    SweepPoint = 32,
}

/// Key of one stream: fixes everything but the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    seed: u64,
    step: u64,
    lane: u32,
}

impl Key {
    /// Stream of a purpose that belongs to the whole job, not to one logical rank.
    pub fn global(seed: u64, purpose: Purpose, step: u64) -> Self {
        Self { seed, step, lane: (purpose as u32) << 24 | 0x00ff_ffff }
    }

    /// Stream of one logical rank.
    pub fn of(seed: u64, purpose: Purpose, step: u64, rank: LogicalRank) -> Self {
        debug_assert!(rank.0 < 0x00ff_ffff);
        Self { seed, step, lane: (purpose as u32) << 24 | rank.0 as u32 }
    }

    /// 128 random bits for `index`, as two numbers.
    #[inline(always)]
    fn block(&self, index: u32, keys: &[[u64; 2]; 10]) -> [u64; 2] {
        let counter = [index.into(), self.lane.into(), self.step & LOW, self.step >> 32];
        let w = philox4x32_10(counter, keys);
        [w[0] & LOW | w[1] << 32, w[2] & LOW | w[3] << 32]
    }

    /// 64 random bits for `index`.
    pub fn bits(&self, index: u64) -> u64 {
        self.block((index >> 1) as u32, &schedule(self.seed))[(index & 1) as usize]
    }

    /// Numbers 0.. of the stream, as [`Key::bits`] gives them.
    pub fn fill_bits(&self, out: &mut [u64]) {
        fill_bits(self, out);
    }

    /// Uniform in [0, 1) with 53 random bits.
    pub fn uniform(&self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 * 2f64.powi(-53)
    }

    /// Uniform integer in 0..`bound`. The bias is below `bound`·2⁻⁶⁴.
    pub fn below(&self, index: u64, bound: u64) -> u64 {
        ((u128::from(self.bits(index)) * u128::from(bound)) >> 64) as u64
    }

    /// Standard normal numbers 0.. of the stream, by Box and Muller in f64, rounded once to f32.
    pub fn normals(&self, count: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(count + 1);
        let mut numbers = vec![0; count.next_multiple_of(2)];
        self.fill_bits(&mut numbers);
        for [first, second] in numbers.as_chunks::<2>().0 {
            let unit = |number: u64| (number >> 11) as f64 * 2f64.powi(-53);
            // 1 - u is in (0, 1]: the logarithm stays finite.
            let radius = (-2.0 * (1.0 - unit(*first)).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * unit(*second)).sin_cos();
            out.extend([(radius * cos) as f32, (radius * sin) as f32]);
        }
        out.truncate(count);
        out
    }

    /// Numbers 0..`count` of the stream, uniform in [`low`, `high`), rounded once to f32.
    pub fn uniforms(&self, count: usize, low: f64, high: f64) -> Vec<f32> {
        (0..count as u64).map(|i| (low + (high - low) * self.uniform(i)) as f32).collect()
    }

    /// A permutation of 0..`count`: indices ordered by their random bits.
    pub fn permutation(&self, count: usize) -> Vec<u32> {
        let mut order: Vec<(u64, u32)> = (0..count as u32).map(|i| (self.bits(u64::from(i)), i)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, i)| i).collect()
    }
}

vectorised! {
    /// Two numbers a block; of the last, one may be left over.
    fn fill_bits(key: &Key, out: &mut [u64]) {
        let keys = schedule(key.seed);
        let (pairs, last) = out.as_chunks_mut::<2>();
        last.iter_mut().for_each(|last| *last = key.block(pairs.len() as u32, &keys)[0]);
        for (block, pair) in pairs.iter_mut().enumerate() {
            *pair = key.block(block as u32, &keys);
        }
    }
}

/// The low 32 bits.
const LOW: u64 = 0xffff_ffff;

/// Keys of the ten rounds.
fn schedule(seed: u64) -> [[u64; 2]; 10] {
    let key = |half: u64, step: u32, round: usize| u64::from((half as u32).wrapping_add(step.wrapping_mul(round as u32)));
    std::array::from_fn(|round| [key(seed, 0x9E37_79B9, round), key(seed >> 32, 0xBB67_AE85, round)])
}

/// Words are u64 that vectors can multiply; bits above the lower 32 mean nothing.
#[inline(always)]
fn philox4x32_10(counter: [u64; 4], keys: &[[u64; 2]; 10]) -> [u64; 4] {
    keys.iter().fold(counter, |c, key| {
        let (a, b) = ((c[0] & LOW) * 0xD251_1F53, (c[2] & LOW) * 0xCD9E_8D57);
        [(b >> 32) ^ c[1] ^ key[0], b, (a >> 32) ^ c[3] ^ key[1], a]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the reference implementation (Random123, kat_vectors, philox 4x32 10 rounds).
    #[test]
    fn philox_gives_the_published_answers() {
        let philox = |counter: [u32; 4], seed: u64| philox4x32_10(counter.map(u64::from), &schedule(seed)).map(|word| word as u32);
        assert_eq!(philox([0; 4], 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], 0x299f_31d0_a409_3822),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn many_numbers_at_once_are_the_numbers_one_by_one() {
        for (seed, step, count) in [(0, 0, 1), (u64::MAX, 1 << 40, 15), (0x0123_4567_89ab_cdef, 77, 1000)] {
            let key = Key::of(seed, Purpose::Draw, step, LogicalRank(3));
            let mut all = vec![0; count];
            key.fill_bits(&mut all);
            assert!((0..count).all(|i| all[i] == key.bits(i as u64)), "{key:?}");
        }
    }

    #[test]
    fn streams_differ_in_every_part_of_their_key() {
        let base = Key::of(1, Purpose::Latent, 7, LogicalRank(0));
        for other in [
            Key::of(2, Purpose::Latent, 7, LogicalRank(0)),
            Key::of(1, Purpose::Labels, 7, LogicalRank(0)),
            Key::of(1, Purpose::Latent, 8, LogicalRank(0)),
            Key::of(1, Purpose::Latent, 7, LogicalRank(1)),
            Key::global(1, Purpose::Latent, 7),
        ] {
            assert_ne!(base.bits(0), other.bits(0));
        }
    }

    /// Mean and variance of 10⁵ normals within 5 standard errors: a correct generator fails once in about 10⁶ seeds.
    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let n = 100_000;
        let x = Key::global(3, Purpose::Latent, 0).normals(n);
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
        let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 5.0 / (n as f64).sqrt(), "mean {mean}");
        assert!((variance - 1.0).abs() < 5.0 * (2.0 / n as f64).sqrt(), "variance {variance}");
    }

    #[test]
    fn a_permutation_holds_every_index_once() {
        let mut p = Key::global(5, Purpose::Shuffle, 2).permutation(1000);
        p.sort_unstable();
        assert!(p.iter().enumerate().all(|(i, &v)| i == v as usize));
    }
}
