//! `cargo bench`: cycles of the sampler, as `ssdkd bench replay` measures them.

fn main() {
    for measured in ssdkd::bench::sampler(&ssdkd::bench::SIZES, None).expect("a buffer of losses between 0 and 1 is legal") {
        println!("replay/{}: {:.0} cycles/s", measured.n, measured.cycles_per_second);
    }
}
