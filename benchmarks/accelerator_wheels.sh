#!/usr/bin/env bash
# Download the wheels that benchmarks/accelerator.sh needs on a machine without internet.
#
#   benchmarks/accelerator_wheels.sh [--python 3.12] [--jax VERSION] [FOLDER]
#
# They are those of the package and of its tests, for Linux on x86-64. What comes with every JAX (jax, jaxlib, numpy,
# scipy, ml_dtypes, opt_einsum) is left out, because the machine has a JAX for its accelerator. `--jax` takes these in as
# well, for the CPU: to rehearse with nothing but a Python. FOLDER is benchmarks/wheels unless it is given.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=3.12 jax='' folder=''

die() {
  echo "accelerator_wheels.sh: $1" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --python | --jax)
      (($# > 1)) || die "$1 needs a version"
      [[ $2 =~ ^[0-9]+(\.[0-9*]+)+$ ]] || die "$1 must be a version such as 3.12, got $2"
      if [[ $1 == --python ]]; then python=$2; else jax=$2; fi
      shift 2
      ;;
    -h | --help)
      sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit
      ;;
    -*) die "there is no option $1; --help tells those that there are" ;;
    *)
      [[ -z $folder ]] || die "one folder takes all wheels, got $folder and $1"
      folder=$1
      shift
      ;;
  esac
done
folder=${folder:-$root/benchmarks/wheels}

cd "$root"
mkdir -p "$folder"
mapfile -t wanted < <(python3 -m benchmarks._requirements --all)
platforms=()
for name in manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${name}_x86_64")
done
python3 -m pip download --quiet --disable-pip-version-check --only-binary :all: --implementation cp \
  --python-version "$python" "${platforms[@]}" --dest "$folder" "${wanted[@]}" ${jax:+"jax==$jax"}
if [[ -z $jax ]]; then
  rm -f "$folder"/{jax,jaxlib,numpy,scipy,ml_dtypes,opt_einsum}-*.whl
fi
ls "$folder"
du -sh "$folder" | cut -f1
