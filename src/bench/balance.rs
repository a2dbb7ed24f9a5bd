//! How much of a batch moves between ranks when the masses of the shards differ a little, or much.

use crate::error::Result;
use crate::layout::{Layout, LogicalRank};
use crate::replay::{Mass, Masses, targets};
use crate::rng::{Key, Purpose};
use serde::Serialize;

/// Share of rows that move on M ranks with a shard each.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Balance {
    /// M.
    pub shards: usize,
    /// Standard deviation of the shards' masses over their mean.
    pub spread: f64,
    /// Mean over draws.
    pub moved: f64,
    /// √(2/π)·σ/M · Σ √(b·(M−b)/M) over the M−1 boundaries b between shards: 0.31·σ·√M for large M.
    pub expected: f64,
    /// The same when one shard has all the mass: (M−1)/M, all a batch can have.
    pub worst: f64,
}

/// Draws of 256 rows from `shards` shards whose masses are normal with this relative spread.
pub fn balance(shards: usize, spread: f64) -> Result<Balance> {
    const BATCH: usize = 256;
    const DRAWS: u64 = 4_000;
    let layout = Layout::new(shards, shards)?;
    let moved = |masses: &[u64], step: u64| -> Result<usize> {
        let masses = Masses::new(&masses.iter().map(|&mass| (Mass(mass), 1_000)).collect::<Vec<_>>())?;
        let targets = targets(masses.total(), BATCH, &Key::global(2, Purpose::Draw, step));
        let stays = |l: usize| {
            let (held, used) = (masses.supplied(&targets, l), layout.rows(LogicalRank(l), BATCH));
            held.end.min(used.end).saturating_sub(held.start.max(used.start))
        };
        Ok(BATCH - (0..shards).map(stays).sum::<usize>())
    };
    let mut sum = 0;
    for step in 0..DRAWS {
        let normals = Key::global(3, Purpose::Draw, step).normals(shards);
        let masses: Vec<u64> = normals.iter().map(|x| ((1.0 + spread * f64::from(*x)).max(0.0) * 1e12) as u64).collect();
        sum += moved(&masses, step)?;
    }
    let mut lopsided = vec![0; shards];
    lopsided[shards - 1] = 1 << 40;
    Ok(Balance {
        shards,
        spread,
        moved: sum as f64 / (DRAWS * BATCH as u64) as f64,
        expected: expected(shards, spread),
        worst: moved(&lopsided, 0)? as f64 / BATCH as f64,
    })
}

/// A boundary between shards lies off its place by what the masses before it are off theirs, and rows between the two places move.
fn expected(shards: usize, spread: f64) -> f64 {
    let m = shards as f64;
    let off = |b: usize| (b as f64 * (m - b as f64) / m).sqrt();
    (2.0 / std::f64::consts::PI).sqrt() * spread / m * (1..shards).map(off).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_balanced_shards_move_under_two_per_cent() {
        for shards in [1, 2, 4, 8] {
            let found = balance(shards, 0.01).unwrap();
            assert!(found.moved < 0.02, "{found:?}");
            assert!((found.moved - found.expected).abs() <= 0.1 * found.expected, "{found:?}");
            assert_eq!(found.worst, (shards - 1) as f64 / shards as f64);
        }
        // The rule of thumb of docs/replay.md.
        assert!((expected(64, 0.01) / (0.31 * 0.01 * 8.0) - 1.0).abs() < 0.02);
        // One per cent of spread is little; fifty is not.
        assert!(balance(8, 0.5).unwrap().moved > 0.1);
    }
}
