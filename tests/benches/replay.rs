//! `cargo bench`: cycles of the sampler, as `ssdkd bench replay` measures them, and the targets of a large batch.

use ssdkd::replay::fill_targets;
use ssdkd::rng::{Key, Purpose};
use std::hint::black_box;
use std::time::Instant;

/// Rows of a batch on 1,024 ranks, in docs/replay.md's model.
const LARGE_BATCH: usize = 131_072;
const TIMES: u64 = 200;

fn main() {
    let mut targets = vec![0; LARGE_BATCH];
    let began = Instant::now();
    for step in 0..TIMES {
        fill_targets(black_box(1 << 50), &Key::global(1, Purpose::Draw, step), &mut targets);
        black_box(&targets);
    }
    println!("replay/targets of {LARGE_BATCH}: {:.0} µs", began.elapsed().as_secs_f64() * 1e6 / TIMES as f64);
    for measured in ssdkd::bench::sampler(&ssdkd::bench::SIZES, None).expect("a buffer of losses between 0 and 1 is legal") {
        println!("replay/{}: {:.0} cycles/s", measured.n, measured.cycles_per_second);
    }
}
