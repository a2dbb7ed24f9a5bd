# To be sourced by bash in an unpacked tarball: what cargo needs there of what was packed.
# shellcheck shell=bash
offline=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# With a home of its own for cargo, a Rust that lies in the user's home is not taken instead.
[ ! -d "$offline/rust" ] || export PATH="$offline/rust/bin:$PATH" CARGO_HOME="$offline/.cargo-home"
if [ -d "$offline/.libclang" ]; then
    # The wheel has the library without the compiler's own headers: gcc's serve.
    export LIBCLANG_PATH=$offline/.libclang/clang/native BINDGEN_EXTRA_CLANG_ARGS="-I$(gcc -print-file-name=include) ${BINDGEN_EXTRA_CLANG_ARGS:-}"
fi
export CARGO_NET_OFFLINE=true
unset offline
