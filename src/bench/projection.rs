//! What steps would take on many GPUs, from counted arithmetic and bytes, measured constants and published speeds. No measurement of
//! a cluster: every assumption is printed with the table (docs/scaling.md).

use super::scaling::sum_bytes;
use super::step::Work;
use crate::parallel::BUCKET;
use serde::Serialize;
use std::fmt::Write;

/// Numbers of GPUs that are asked about.
pub const GPUS: [usize; 3] = [8, 64, 1_024];

/// What is assumed of machines. Where no source is given, it is a guess.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Machine {
    /// 10¹² operations per second of a GPU at best: H100 SXM in f32 outside its tensor cores (NVIDIA, H100 data sheet).
    pub peak_tflops: f64,
    /// Share of that which convolutions reach. Assumed: large ones do better, those of 16 channels worse.
    pub utilisation: f64,
    /// GPUs of a node.
    pub node: usize,
    /// Bytes per second that a GPU can send within a node: half of NVLink 4's 900 GB/s, which count both directions (the same sheet).
    pub within_node: f64,
    /// Bytes per second that a GPU can send out of its node: an InfiniBand NDR port of 400 Gb/s each (NVIDIA, ConnectX-7 manual).
    pub between_nodes: f64,
    /// Share of either which collectives reach. Assumed.
    pub link_efficiency: f64,
    /// Seconds of a message: measured between two processes (docs/replay.md); clusters are quoted at 1 to 2 µs.
    pub message: f64,
    /// Seconds of a draw's local work: measured (docs/replay.md).
    pub draw: f64,
    /// Seconds of one target of a draw; every rank computes all: measured (docs/replay.md).
    pub target: f64,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            peak_tflops: 67.0,
            utilisation: 0.3,
            node: 8,
            within_node: 450e9,
            between_nodes: 50e9,
            link_efficiency: 0.8,
            message: 2e-6,
            draw: 0.3e-3,
            target: 3.4e-9,
        }
    }
}

/// What is counted of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pair {
    /// Images of a step on one rank.
    pub batch: usize,
    /// Inner steps of an inversion.
    pub inner_steps: u64,
    /// 10⁹ operations of one inner step on one rank.
    pub inner_gflop: f64,
    /// 10⁹ operations of one student step on one rank, teacher's logits stored.
    pub student_gflop: f64,
    /// Values of the generator's gradient.
    pub generator_values: usize,
    /// Values of the student's gradient and running statistics.
    pub student_values: usize,
    /// Bytes of a row that moves.
    pub row_bytes: usize,
}

/// One kind of step on some number of GPUs. Nothing overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Projected {
    /// R = M.
    pub gpus: usize,
    /// Which.
    pub work: Work,
    /// Arithmetic.
    pub compute_ms: f64,
    /// A student step's draw and its way home.
    pub draw_ms: f64,
    /// Megabytes that one GPU sends for the sum.
    pub megabytes: f64,
    /// The sum with bits that do not depend on R.
    pub deterministic_ms: f64,
    /// The library's own sum.
    pub native_ms: f64,
    /// Time on one GPU over time here, with the first sum.
    pub efficiency: f64,
    /// With the second.
    pub efficiency_native: f64,
}

/// Seconds of both sums of `values` values: the bytes of a ring; and messages in a row, for the deterministic one an all-to-all of R − 1
/// and an all-gather of ⌈log₂ R⌉ for every bucket, for the library's own a tree up and down.
fn sums(machine: &Machine, values: usize, gpus: usize) -> [f64; 2] {
    let transfer = sum_bytes(values, gpus) as f64 / gpus as f64 / machine.link(gpus);
    let levels = f64::from(gpus.next_power_of_two().trailing_zeros());
    let buckets = values.div_ceil(BUCKET) as f64;
    [buckets * ((gpus - 1) as f64 + levels), 2.0 * levels].map(|messages| transfer + messages * machine.message)
}

impl Machine {
    /// Bytes per second of each GPU when `gpus` of them talk: the slowest link on the way.
    fn link(&self, gpus: usize) -> f64 {
        self.link_efficiency * if gpus <= self.node { self.within_node } else { self.between_nodes }
    }

    /// Seconds of a draw and its way home; as if every row of a rank moved (docs/replay.md).
    fn draw(&self, pair: &Pair, gpus: usize) -> f64 {
        let local = self.draw + self.target * (pair.batch * gpus) as f64;
        if gpus == 1 {
            return local;
        }
        let messages = f64::from(gpus.next_power_of_two().trailing_zeros()) + 2.0 * (gpus - 1) as f64;
        local + messages * self.message + (24 * gpus + pair.batch * (pair.row_bytes + 4)) as f64 / self.link(gpus)
    }
}

/// Both kinds of steps on `gpus` GPUs.
pub fn project(pair: &Pair, machine: &Machine, gpus: usize) -> [Projected; 2] {
    let seconds = |gflop: f64| gflop / (1e3 * machine.peak_tflops * machine.utilisation);
    let of = |work, gflop, values, draws: bool| {
        let (compute, draw) = (seconds(gflop), |gpus| if draws { machine.draw(pair, gpus) } else { 0.0 });
        let [deterministic, native] = sums(machine, values, gpus);
        let efficiency = |sum: f64| (compute + draw(1)) / (compute + draw(gpus) + sum);
        Projected {
            gpus,
            work,
            compute_ms: 1e3 * compute,
            draw_ms: 1e3 * draw(gpus),
            megabytes: sum_bytes(values, gpus) as f64 / gpus as f64 / 1e6,
            deterministic_ms: 1e3 * deterministic,
            native_ms: 1e3 * native,
            efficiency: efficiency(deterministic),
            efficiency_native: efficiency(native),
        }
    };
    [
        of(Work::Inversion, pair.inner_gflop * pair.inner_steps as f64, pair.generator_values, false),
        of(Work::DistillationStored, pair.student_gflop, pair.student_values, true),
    ]
}

/// Markdown: the table, and what it assumes.
pub fn projection(pair: &Pair, machine: &Machine) -> String {
    let mut text = String::from(
        "| GPUs | step | arithmetic, ms | draw, ms | sum, MB sent a GPU | sum, ms | sum by the library, ms | efficiency | by the library |\n\
         | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for p in GPUS.into_iter().flat_map(|gpus| project(pair, machine, gpus)) {
        let name = if p.work == Work::Inversion { format!("inversion, {} inner steps", pair.inner_steps) } else { "student".into() };
        let draw = if p.draw_ms > 0.0 { format!("{:.2}", p.draw_ms) } else { "–".into() };
        let _ = writeln!(
            text,
            "| {} | {name} | {:.2} | {draw} | {:.1} | {:.2} | {:.2} | {:.2} | {:.2} |",
            p.gpus, p.compute_ms, p.megabytes, p.deterministic_ms, p.native_ms, p.efficiency, p.efficiency_native
        );
    }
    let Machine { peak_tflops, utilisation, node, within_node, between_nodes, link_efficiency, message, draw, target } = machine;
    let _ = write!(
        text,
        "\nCounted: {:.0} GFLOP an inner step and {:.0} a student step of {} images, {} values of the generator's sum and {} of the \
         student's, {} bytes a row.\nMeasured: {:.1} µs a message, {:.1} ms and {:.1} ns a target for a draw.\nPublished: {peak_tflops} \
         TFLOP/s, {:.0} GB/s within a node of {node}, {:.0} GB/s a GPU between nodes.\nAssumed: {:.0} % of that arithmetic, {:.0} % of \
         those links; messages between nodes as fast as within one; every row of a draw moves; no rank waits for another; nothing overlaps; \
         the teacher's passes over stored views, once a round, are left out.\n",
        pair.inner_gflop,
        pair.student_gflop,
        pair.batch,
        pair.generator_values,
        pair.student_values,
        pair.row_bytes,
        1e6 * message,
        1e3 * draw,
        1e9 * target,
        within_node / 1e9,
        between_nodes / 1e9,
        100.0 * utilisation,
        100.0 * link_efficiency,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Pair = Pair {
        batch: 128,
        inner_steps: 10,
        inner_gflop: 670.0,
        student_gflop: 67.0,
        generator_values: 4_000_000,
        student_values: 1_000_000,
        row_bytes: 3_128,
    };

    /// By hand: 67 GFLOP at 67 · 0.3 TFLOP/s are 3.33 ms; 8·10⁶ bytes · 63/64 at 40 GB/s are 0.197 ms; one bucket of 63 + 6 messages of
    /// 2 µs are 0.138 ms, and 12 are 0.024 ms; the draw is 0.3 + 0.028 ms, 6 + 126 messages, 0.4 MB.
    #[test]
    fn sixty_four_gpus_by_hand() {
        let [_, step] = project(&PAIR, &Machine::default(), 64);
        let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 0.01, "{got} for {want}");
        near(step.compute_ms, 3.333);
        near(step.megabytes, 7.875);
        near(step.deterministic_ms, 0.1969 + 0.138);
        near(step.native_ms, 0.1969 + 0.024);
        near(step.draw_ms, 0.3 + 0.0279 + 0.264 + 0.0101);
        near(step.efficiency, (3.333 + 0.3004) / (3.333 + 0.602 + 0.3349));
    }

    #[test]
    fn one_gpu_has_nothing_to_say() {
        for step in project(&PAIR, &Machine::default(), 1) {
            assert_eq!((step.efficiency, step.efficiency_native, step.megabytes), (1.0, 1.0, 0.0));
        }
    }

    /// What the deterministic sum costs beyond the other is messages: none of it is bandwidth.
    #[test]
    fn more_gpus_are_never_more_efficient() {
        for kind in [0, 1] {
            let found: Vec<f64> = [1, 8, 64, 1_024].map(|gpus| project(&PAIR, &Machine::default(), gpus)[kind].efficiency).into();
            assert!(found.windows(2).all(|two| two[0] > two[1]), "{found:?}");
        }
        let free = Machine { message: 0.0, ..Machine::default() };
        let [inversion, _] = project(&PAIR, &free, 1_024);
        assert_eq!(inversion.deterministic_ms, inversion.native_ms);
    }
}
