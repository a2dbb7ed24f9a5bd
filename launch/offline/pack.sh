#!/usr/bin/env bash
# One tarball with all that a site without registries needs: this checkout, every crate (`cargo vendor`), libtorch's wheels, checksums.
#   launch/offline/pack.sh FILE.tar.gz [--gpu] [--cuda 12.6] [--rust] [--libclang]
# --gpu       libtorch's CUDA side too (2 GB more); --cuda 12.6: the flavour for NVIDIA drivers older than 580 (docs/sites.md)
# --rust      this machine's Rust, for sites whose Rust is too old
# --libclang  the wheel `libclang`, for sites without one
# There: unpack it anywhere and run install.sh in it. Root is not needed.
set -euo pipefail
usage() { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
die() { printf 'pack: error: %s\n' "$*" >&2; exit 1; }
case ${1:-} in '' | -*) usage ;; esac
out=$(realpath -m "$1"); shift
with_gpu=no with_rust=no with_libclang=no flavour=13
while [ $# -gt 0 ]; do
    case $1 in
        --gpu) with_gpu=yes ;;
        --cuda) flavour=${2:-} with_gpu=yes; shift ;;
        --rust) with_rust=yes ;;
        --libclang) with_libclang=yes ;;
        *) usage ;;
    esac
    shift || true
done
# usage reads this file by the name it was called with: only now.
cd "$(dirname "$0")/../.."
# shellcheck source=launch/common.sh
. launch/common.sh
rustup_first
absolute_wheels
if [ $with_rust = yes ]; then
    rust=$(rustc --print sysroot)
    [ "$rust" != /usr ] || die "--rust: this Rust is the distribution's, spread over /usr: take one of rustup's, or leave --rust out"
fi
# Files are packed as they lie here: the commit alone would name others.
commit=$(git rev-parse --short=12 HEAD)
[ -z "$(git status --porcelain --untracked-files=no)" ] || commit=$commit-dirty
wheel_lists $with_gpu "$flavour" || exit 1
mkdir -p "$(dirname "$out")"
stage=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$stage"' EXIT
top=$stage/ssdkd-offline
mkdir -p "$top/wheels"

git ls-files -z | tar --null --files-from=- --create | tar --extract --directory "$top"
cp launch/offline/install.sh launch/offline/env.sh "$top"
# The commit that `ssdkd --version` and every report name: git's own folder stays here.
echo "$commit" >"$top/COMMIT"
# cargo prints the settings that make it use the vendored crates; their folder is relative to the file's parent.
(cd "$top" && cargo vendor --locked vendor 2>"$stage/log") >"$stage/sources.toml" ||
    { cat "$stage/log" >&2; exit 1; }
{ echo; cat "$stage/sources.toml"; } >>"$top/.cargo/config.toml"
pip_wheels download "${rules[@]+"${rules[@]}"}" --dest "$top/wheels" "${lists[@]/#/--requirement=}"
echo "$with_gpu $flavour" >"$top/wheels/flavour"
if [ $with_libclang = yes ]; then pip_wheels download --no-deps --dest "$top/wheels" libclang; fi
if [ $with_rust = yes ]; then
    mkdir "$top/rust"
    tar --create --directory "$rust" --exclude=share/doc bin lib libexec | tar --extract --directory "$top/rust"
fi
(cd "$top" && find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum >SHA256SUMS)
tar --create --gzip --file "$out.part" --directory "$stage" ssdkd-offline
mv "$out.part" "$out"
(cd "$(dirname "$out")" && sha256sum "$(basename "$out")")
