#!/usr/bin/env bash
# Packs ssdkd for a machine that has a GPU and a Python with torch 2.11.0, but no cargo, no MPI and no network (docs/gpu.md).
#
#   launch/bundle.sh FOLDER.tar.gz     below 60 MiB: binary, this machine's Open MPI, the demo, launch/gpu_check.sh
#   tar xzf FOLDER.tar.gz              there, anywhere; then FOLDER/launch/gpu_check.sh, or `. FOLDER/env.sh` and ssdkd
#
# One machine only: launching over ssh or Slurm is left out, and so are fabrics. SSDKD_BIN names another binary than target/release/ssdkd.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
die() { printf 'bundle: error: %s\n' "$*" >&2; exit 1; }
[ $# -eq 1 ] && [ "${1%.tar.gz}" != "$1" ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
target=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
name=$(basename "$1" .tar.gz)
binary=${SSDKD_BIN:-$here/target/release/ssdkd}
[ -x "$binary" ] || die "$binary is not there: cargo build --release"
for tool in ompi_info ldd strip tar; do command -v $tool >/dev/null || die "$tool is not on PATH (launch/setup.sh; the MPI has to be Open MPI)"; done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=$work/$name
mkdir -p "$out"/{bin,launch,configs,mpi/{bin,lib,share,etc}}

strip --strip-all -o "$out/bin/ssdkd" "$binary"
cp "$here"/launch/{common,mpirun,gpu_check}.sh "$out/launch/"
cp -r "$here"/configs/{fashion_mnist,scenes13,methods} "$out/configs/"
rm -rf "$out/configs/fashion_mnist/sweeps"
cp "$here/LICENSE" "$out/"

# ---- Open MPI, as installed here -------------------------------------------------------------------------------------
path_of() { ompi_info --path "$1" --parsable | cut -d: -f3; }
bin=$(path_of bindir) plugins=$(path_of pkglibdir) data=$(path_of pkgdatadir) etc=$(path_of sysconfdir)
cp -L "$bin/orterun" "$bin/orted" "$out/mpi/bin/"
ln -s orterun "$out/mpi/bin/mpirun"
base='^(linux-vdso|libc|libm|libdl|librt|libpthread|libutil|libgcc_s|libstdc\+\+|ld-linux.*)\.so'
# needs FILE: the shared libraries it is linked with, the C and C++ runtime left out, as NAME PATH.
needs() { ldd "$1" | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' | grep -Ev "$base" || true; }
take() { while read -r soname path; do cp -Ln "$path" "$out/mpi/lib/$soname"; done < <(needs "$1"); }
take "$bin/orterun"
take "$bin/orted"
while read -r soname path; do
    case $soname in libtorch* | libc10* | libgomp* | libcud* | libcup* | libshm*) continue ;; esac
    cp -Ln "$path" "$out/mpi/lib/$soname"
done < <(needs "$binary")
pmix=$(find -L "$(dirname "$(ldd "$plugins"/mca_pmix_*.so 2>/dev/null | awk '/libpmix\.so/ { print $3; exit }')")" /usr/lib/*/pmix2/lib \
    -maxdepth 1 -name pmix -type d 2>/dev/null | head -n1)
for plugin in "$plugins"/mca_pmix_ext*.so; do [ ! -e "$plugin" ] || take "$plugin"; done
# copy_plugins FROM TO: those whose libraries are here; others would only warn.
copy_plugins() {
    local plugin soname path
    mkdir -p "$2"
    for plugin in "$1"/*.so; do
        while read -r soname path; do [ -e "$out/mpi/lib/$soname" ] || continue 2; done < <(needs "$plugin")
        cp -L "$plugin" "$2/"
    done
}
while read -r path; do cp -Ln "$path" "$out/mpi/lib/$(basename "$path" | sed 's/\(\.so\.[0-9]*\).*/\1/')"; done < <(
    ldd "$plugins"/*.so 2>/dev/null | awk '$3 ~ /libmca_common_(sm|ompio|monitoring|dstore)/ { print $3 }' | sort -u)
copy_plugins "$plugins" "$out/mpi/lib/openmpi/lib/openmpi3"
[ -z "$pmix" ] || copy_plugins "$pmix" "$out/mpi/lib/pmix"
cp -rL "$data" "$out/mpi/share/openmpi"
rm -rf "$out"/mpi/share/openmpi/*wrapper-data.txt "$out"/mpi/share/openmpi/*.supp
[ ! -d "$etc" ] || cp -rL "$etc" "$out/mpi/etc/openmpi"
# Terms of what is packed, where the system's packages say them.
for package in openmpi-bin libopenmpi3 libpmix2 libhwloc15 libevent-core-2.1-7 libmunge2 libudev1 zlib1g; do
    if [ -e /usr/share/doc/$package/copyright ]; then mkdir -p "$out/mpi/licenses" && cp /usr/share/doc/$package/copyright "$out/mpi/licenses/$package"; fi
done

cat > "$out/env.sh" <<'ENV'
# Source this file in bash, with the environment active whose python3 has torch 2.11.0 (or PYTHON naming it): ssdkd and mpirun are then on PATH.
ssdkd_bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ssdkd_torch=$("${PYTHON:-python3}" - <<'PY'
import importlib.util, pathlib, re, sys
spec = importlib.util.find_spec("torch")
if spec is None:
    sys.exit("error: this python3 has no torch: activate the environment with torch 2.11.0, or set PYTHON")
folder = pathlib.Path(spec.origin).parent
version = re.search(r"__version__ = '([^'+]*)", (folder / "version.py").read_text())
if version is None or version[1] != "2.11.0":
    sys.exit(f"error: torch {version[1] if version else 'of an unknown version'} in {folder}; 2.11.0 is needed")
print(folder / "lib")
PY
) || return 1
# The crate that loads NCCL looks for libnccl.so; the wheel beside torch brings libnccl.so.2.
ssdkd_links=$(mktemp -d)
for ssdkd_nccl in "$ssdkd_torch"/../../nvidia/nccl/lib/libnccl.so.2 "$ssdkd_torch"/libnccl.so.2; do
    if [ -e "$ssdkd_nccl" ]; then ln -sf "$(readlink -f "$ssdkd_nccl")" "$ssdkd_links/libnccl.so"; break; fi
done
export PATH=$ssdkd_bundle/bin:$ssdkd_bundle/mpi/bin:$PATH
export LD_LIBRARY_PATH=$ssdkd_torch:$ssdkd_links:$ssdkd_bundle/mpi/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export OPAL_PREFIX=$ssdkd_bundle/mpi OPAL_LIBDIR=$ssdkd_bundle/mpi/lib/openmpi/lib OPAL_PKGLIBDIR=$ssdkd_bundle/mpi/lib/openmpi/lib/openmpi3
export OPAL_PKGDATADIR=$ssdkd_bundle/mpi/share/openmpi OPAL_SYSCONFDIR=$ssdkd_bundle/mpi/etc/openmpi
export PMIX_PKGLIBDIR=$ssdkd_bundle/mpi/lib/pmix
# One machine: no ssh, no fabric.
export OMPI_MCA_btl=self,vader,tcp OMPI_MCA_pml=ob1 OMPI_MCA_plm=isolated
if [ "$(id -u)" -eq 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
unset ssdkd_bundle ssdkd_torch ssdkd_links ssdkd_nccl
ENV

tar -C "$work" -czf "$target" "$name"
size=$(( $(stat -c %s "$target") / 1024 / 1024 ))
[ $size -lt 60 ] || die "$target has $size MiB, more than 60"
printf 'bundle: %s, %d MiB, %s\n' "$target" $size "$(mpirun --version | head -n1)"
