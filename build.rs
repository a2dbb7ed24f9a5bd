//! Compiles the C++ shim against libtorch and gives the binary a run path to it.

use std::path::{Path, PathBuf};

const HEADER: &str = "src/nn/shim.h";

fn main() {
    const WINOGRAD: &str = "src/nn/winograd.cpp";
    const OTHERS: [&str; 5] =
        ["src/nn/shim.cpp", "src/nn/depthwise.cpp", "src/nn/observer.cpp", "src/nn/graph.cpp", "src/device/stream.cpp"];
    let sources: Vec<&str> = OTHERS.into_iter().chain([WINOGRAD, HEADER]).collect();
    for path in &sources {
        println!("cargo:rerun-if-changed={path}");
    }
    let lib = PathBuf::from(std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's lib folder"));
    let include = lib.parent().expect("lib lies in libtorch's folder").join("include");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo names the folder"));
    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++17")
        .opt_level(3)
        .debug(false)
        .warnings(false)
        // at::parallel_for is a header; without OpenMP it is a plain loop.
        .flag("-fopenmp")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // As libtorch itself: without it some of its structures have members that libtorch's own code does not know of.
        .define("NDEBUG", None)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file(WINOGRAD)
        .file(in_one(&OTHERS, &out));
    compile(&shim, &sources, &include, &out);
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-lib=gomp");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-env=SSDKD_LIBTORCH_LIB={}", lib.display());
    // A tarball of launch/offline/pack.sh has no repository, but the commit it was made of.
    let packed = std::fs::read_to_string("COMMIT").ok();
    println!("cargo:rerun-if-changed={}", if packed.is_some() { "COMMIT" } else { ".git/logs/HEAD" });
    let asked = || std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok();
    let commit = packed.or_else(|| asked().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok()));
    println!("cargo:rustc-env=SSDKD_COMMIT={}", commit.as_deref().unwrap_or("unknown").trim());
}

/// One file that includes all: libtorch's headers take most of a minute each time they are read.
fn in_one(sources: &[&str], out: &Path) -> PathBuf {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo names the folder");
    let all = out.join("ssdkd_shim.cpp");
    let lines: String = sources.iter().map(|path| format!("#include \"{root}/{path}\"\n")).collect();
    std::fs::write(&all, lines).expect("a file in cargo's folder");
    all
}

/// Compiles only what has changed: every commit runs this program.
fn compile(shim: &cc::Build, sources: &[&str], include: &Path, out: &Path) {
    let text: Vec<String> = sources.iter().map(|path| std::fs::read_to_string(path).expect("a source file")).collect();
    let now = format!("{}\n{}\n{:?}", include.display(), text.join("\n"), std::fs::read_to_string("build.rs"));
    let (library, of) = (out.join("libssdkd_shim.a"), out.join("compiled-from"));
    if library.exists() && std::fs::read_to_string(&of).is_ok_and(|then| then == now) {
        println!("cargo:rustc-link-lib=static=ssdkd_shim");
        println!("cargo:rustc-link-search=native={}", out.display());
        println!("cargo:rustc-link-lib=stdc++");
        return;
    }
    shim.compile("ssdkd_shim");
    std::fs::write(of, now).expect("a file in cargo's folder");
}
