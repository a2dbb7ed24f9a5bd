//! x^y for many x at once: a logarithm and an exponential by their series, of operations that every CPU rounds alike.

use std::f64::consts::{LN_2, SQRT_2};

/// Factors of s, s³, … s¹⁹ in log₂((1+s)/(1−s)), for |s| ≤ 3 − √8: the next adds less than 2⁻⁵⁵ of the whole.
const LOG2: [f64; 10] = {
    let mut factors = [0.0; 10];
    let mut k = 0;
    while k < 10 {
        factors[k] = 2.0 / LN_2 / (2 * k + 1) as f64;
        k += 1;
    }
    factors
};

/// Factors of 1, r, … r¹³ in 2^r, for |r| ≤ ½: the next is below 2⁻⁵⁷.
const EXP2: [f64; 14] = {
    let mut factors = [1.0; 14];
    let mut k = 1;
    while k < 14 {
        factors[k] = factors[k - 1] * LN_2 / k as f64;
        k += 1;
    }
    factors
};

/// Bits of a mantissa.
const MANTISSA: u32 = 52;
/// 2⁵² and 1.5·2⁵²: a number added to one of them is rounded to an integer, which the low bits of the sum hold (signed, for the second).
const WHOLE: f64 = 4_503_599_627_370_496.0;
const SIGNED: f64 = 1.5 * WHOLE;

/// x^y for finite x ≥ 0, to a relative error below (2 + |y|)·2⁻⁵² (tested). 0^y is 0, 1 or infinite, as y is positive, 0 or negative.
/// A number below 2⁻¹⁰²² counts as 0.
///
/// A result outside 2^±1021 becomes 0 or infinite. Where x is NaN or infinite, the result is NaN.
#[inline(always)]
pub fn power(x: f64, y: f64) -> f64 {
    exp2(log2_times(x, y))
}

/// [`power`] of every x, in place: the same bits.
///
/// First all logarithms, then all exponentials: a CPU overlaps as many short chains of operations as fit into its window.
#[inline(always)]
pub fn powers(values: &mut [f64], y: f64) {
    const BLOCK: usize = 256;
    let (mut exact, mut rest) = ([0.0; BLOCK], [0.0; BLOCK]);
    for block in values.chunks_mut(BLOCK) {
        for ((x, exact), rest) in block.iter().zip(&mut exact).zip(&mut rest) {
            (*exact, *rest) = log2_times(*x, y);
        }
        for ((x, exact), rest) in block.iter_mut().zip(&exact).zip(&rest) {
            *x = exp2((*exact, *rest));
        }
    }
}

/// y·log₂ x in two parts, the first of which is exact: else the error would grow with the logarithm.
#[inline(always)]
fn log2_times(x: f64, y: f64) -> (f64, f64) {
    // x = 2^e·z with z in √½..√2.
    let bits = x.to_bits();
    let biased = bits.wrapping_add(1f64.to_bits() - (SQRT_2 / 2.0).to_bits()) >> MANTISSA;
    let e = f64::from_bits(biased | WHOLE.to_bits()) - (WHOLE + 1023.0);
    let z = f64::from_bits(bits.wrapping_sub(biased << MANTISSA).wrapping_add(1f64.to_bits()));
    let s = (z - 1.0) / (z + 1.0);
    let log2_z = s * series(&LOG2, s * s);

    // A number of 26 bits times a whole one of at most 11.
    let y_high = f64::from_bits(y.to_bits() & !0x07ff_ffff);
    let at_zero = if y == 0.0 { 0.0 } else { y * f64::NEG_INFINITY };
    let exact = if x < f64::MIN_POSITIVE { at_zero } else { y_high * e };
    (if x < f64::INFINITY { exact } else { f64::NAN }, (y - y_high) * e + y * log2_z)
}

/// 2 to the sum of two numbers, the second of them small.
#[inline(always)]
fn exp2((exact, rest): (f64, f64)) -> f64 {
    let exponent = exact + rest;
    let rounded = exponent + SIGNED;
    let fraction = (exact - (rounded - SIGNED)) + rest;
    let scaled = f64::from_bits(series(&EXP2, fraction).to_bits().wrapping_add(rounded.to_bits() << MANTISSA));
    let scaled = if exponent >= -1021.0 { scaled } else { 0.0 };
    // The product is infinite or NaN.
    if exponent <= 1021.0 { scaled } else { exponent * f64::INFINITY }
}

/// Σ factors[k]·x^k, every fourth power by itself: four short chains of operations in place of a long one.
#[inline(always)]
fn series<const N: usize>(factors: &[f64; N], x: f64) -> f64 {
    let square = x * x;
    let fourth = square * square;
    let mut sums = [0.0; 4];
    for k in (0..N).rev() {
        sums[k % 4] = if k + 4 < N { sums[k % 4] * fourth + factors[k] } else { factors[k] };
    }
    (sums[0] + sums[1] * x) + (sums[2] + sums[3] * x) * square
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the C library's pow, itself within 2⁻⁵² of the true value, over all magnitudes and the exponents in use.
    #[test]
    fn the_error_is_within_its_bound() {
        let mut worst = 0f64;
        for (i, y) in [0.6, -0.4, 0.5, 1.0, 0.1, -1.0, 0.013, 2.0, -1.7, 0.999].into_iter().enumerate() {
            for j in 0..200_000u64 {
                let bits = crate::rng::Key::global(i as u64, crate::rng::Purpose::Draw, 1).bits(j);
                // Half of them near the magnitudes of losses, half over all of f64.
                let x = if j % 2 == 0 { 2f64.powf((bits >> 11) as f64 * 2f64.powi(-53) * 70.0 - 50.0) } else { f64::from_bits(bits >> 1) };
                let want = x.powf(y);
                if !x.is_normal() || !(2f64.powi(-1020)..2f64.powi(1020)).contains(&want) {
                    continue;
                }
                let error = (power(x, y) - want).abs() / want / ((2.0 + y.abs()) * 2f64.powi(-52));
                worst = worst.max(error);
                assert!(error < 1.0, "{x:e}^{y}: {error} of the bound");
            }
        }
        println!("largest error: {worst:.3} of (2 + |y|)·2⁻⁵²");
        assert!(worst > 0.1, "a bound that wide says nothing");
    }

    #[test]
    fn special_values_are_those_of_pow() {
        for y in [0.6, 0.0, -0.4, 1.0, 3.0] {
            for x in [0.0, 1.0] {
                assert_eq!(power(x, y), x.powf(y), "{x}^{y}");
            }
        }
        assert_eq!((power(5e-324, 0.0), power(5e-324, 0.6), power(-0.0, 0.6)), (1.0, 0.0, 0.0));
        assert_eq!((power(1e300, 2.0), power(1e-300, 2.0)), (f64::INFINITY, 0.0));
        assert!([f64::NAN, f64::INFINITY].iter().all(|&x| power(x, 0.6).is_nan()));
    }
}
