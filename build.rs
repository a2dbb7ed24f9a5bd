//! Compiles the C++ shim against libtorch and gives the binary a run path to it.

use std::path::PathBuf;

fn main() {
    const SOURCES: [&str; 3] = ["src/nn/shim.cpp", "src/nn/winograd.cpp", "src/device/stream.cpp"];
    for path in SOURCES.into_iter().chain(["src/nn/shim.h"]) {
        println!("cargo:rerun-if-changed={path}");
    }
    let lib = PathBuf::from(std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's lib folder"));
    let include = lib.parent().expect("lib lies in libtorch's folder").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .warnings(false)
        // at::parallel_for is a header; without OpenMP it is a plain loop.
        .flag("-fopenmp")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(SOURCES)
        .compile("ssdkd_shim");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-lib=gomp");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rerun-if-changed=.git/logs/HEAD");
    let commit = std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit = commit.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok());
    println!("cargo:rustc-env=SSDKD_COMMIT={}", commit.as_deref().unwrap_or("unknown").trim());
}
