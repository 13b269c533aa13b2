#!/usr/bin/env bash
# Measure everything on a borrowed GPU or TPU machine, without internet and in little time.
#
#   benchmarks/accelerator.sh [--budget 600] [--steps NAME,..] [--wheels DIR] [--python PYTHON] [--archive FILE.tar.gz]
#                             [--rehearse] [FOLDER]
#
# Steps, in this order: suite, 130m, 370m, 780m, 1.3b, 2.7b, trace, context, train. The programs of the three small sizes
# are compiled side by side, except on a TPU, which serves one process at a time; then each size is measured alone. A step
# writes its figures to FOLDER (benchmarks/results unless it is given) as soon as it has them, and its output to
# FOLDER/logs. Steps for which no time is left are skipped and named; `--steps` runs them another time. Packages that
# PYTHON lacks are installed from the folder of wheels that benchmarks/accelerator_wheels.sh made (benchmarks/wheels),
# into a temporary environment that uses everything that PYTHON has: its JAX is never replaced. `--archive` puts FOLDER's
# new files into one file, after every step. `--rehearse` does all of it on the CPU at a tiny geometry, with a stand-in
# for mamba_ssm.
# The exit code is 0 if every step ended well, 1 if one failed or was skipped, 2 if the command is wrong.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
known=(suite 130m 370m 780m 1.3b 2.7b trace context train)
budget=600 steps='' wheels=$root/benchmarks/wheels python=python3 archive='' rehearse='' folder=''

die() {
  echo "accelerator.sh: $1" >&2
  exit 2
}

while (($#)); do
  case $1 in
    --budget | --steps | --wheels | --python | --archive)
      (($# > 1)) || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --rehearse) rehearse=yes && shift ;;
    -h | --help)
      sed -n '2,18s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit
      ;;
    -*) die "there is no option $1; --help tells those that there are" ;;
    *)
      [[ -z $folder ]] || die "one folder takes all results, got $folder and $1"
      folder=$1 && shift
      ;;
  esac
done
[[ $budget =~ ^[1-9][0-9]{0,5}$ ]] || die "--budget must be a number of seconds, got $budget"
wanted=("${known[@]}")
if [[ -n $steps ]]; then
  IFS=, read -ra wanted <<<"$steps"
fi
for name in "${wanted[@]}"; do
  [[ " ${known[*]} " == *" $name "* ]] || die "--steps: no step is called $name; there are ${known[*]}"
done
command -v "$python" >/dev/null || die "--python: there is no $python"

[[ -z $archive || -d $(dirname "$archive") ]] || die "--archive: there is no folder $(dirname "$archive")"

folder=${folder:-$root/benchmarks/results}
mkdir -p "$folder/logs" || die "$folder cannot be written"
folder=$(cd "$folder" && pwd)
[[ -z $archive ]] || archive=$(cd "$(dirname "$archive")" && pwd)/$(basename "$archive")
[[ ! -d $wheels ]] || wheels=$(cd "$wheels" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
touch "$work/began"

# Nothing is written to a home folder, and nothing is looked for in the network.
mkdir "$work/home"
export HOME=$work/home XDG_CACHE_HOME=$work/home/cache MPLCONFIGDIR=$work/home TRITON_CACHE_DIR=$work/triton
export JAX_COMPILATION_CACHE_DIR=$work/xla # XLA's choices of kernels are shared by all steps
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
cd "$root" || exit 1

# Sizes. A rehearsal takes every path with the smallest.
sizes=() traced=(-g 130m) flat=(-g 130m -l 1,1024,16384,65536) trained=(-g 10m) tested=()
if [[ -n $rehearse ]]; then
  export JAX_PLATFORMS=cpu PYTHONPATH=$root/tests/rehearsal:$root/tests:$PYTHONPATH
  sizes=(-b 1,2 -l 40,17 -n 2 -r 1)
  traced=(-g tiny -l 16 -n 2) flat=(-g tiny -l 1,20 -n 2 -r 1) trained=(-g tiny -b 1 -l 8 -r 1 --rounds 1)
  tested=(--tests test_norms)
fi

say() { printf '%4ss  %s\n' "$SECONDS" "$1"; }
miss() { say "$1" && printf '%s\n' "$1" >>"$work/missed"; } # steps run side by side: the list is a file
touch "$work/missed"

pack() {
  [[ -n $archive ]] || return 0
  local packed=$work/archive-$BASHPID
  (cd "$folder" && find . -type f -newer "$work/began" ! -name '*.partial' -print0 | tar czf "$packed" --null -T -)
  mv "$packed" "$archive"
}

# attempt NAME PERCENT COMMAND...: run a command for at most a share of the budget, and what is left of it.
attempt() {
  local name=$1 most=$((budget * $2 / 100)) left=$((budget - SECONDS - 3)) code
  shift 2
  if ((left < budget / 30)); then
    miss "$name: skipped, no time is left"
    return 1
  fi
  local limit=$((left < most ? left : most))
  timeout --kill-after=5 "$limit" "${@//SECONDS_LEFT/$((limit * 9 / 10))}" >"$folder/logs/$name.log" 2>&1
  code=$?
  pack
  if ((code == 0)); then
    say "$name: done"
    return 0
  fi
  if ((code == 124 || code == 137)); then
    miss "$name: ended after ${limit}s; its figures so far are kept"
  else
    miss "$name: failed, see $folder/logs/$name.log"
  fi
  ((code != 124 && code != 137)) || return 124
  tail -n 5 "$folder/logs/$name.log" | cut -c1-300
  return 1
}

bench() { attempt "$1" "$2" "$env/bin/python" -m benchmarks "${@:3}" -o "$folder"; }

# The environment: all that PYTHON has, also if it is a virtual environment itself, and the wheels that it lacks.
env=$work/env
"$python" -m venv --without-pip --system-site-packages "$env" || die "$python makes no virtual environment"
site=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -c 'import site; [print(f"import site; site.addsitedir({path!r})") for path in site.getsitepackages()]' >"$site/outer.pth"
lacking=$("$env/bin/python" -m benchmarks._requirements) || die "$python is too old: Python 3.11 or newer is needed"
if [[ -n $lacking ]]; then
  say "not installed: ${lacking//$'\n'/ }"
  "$env/bin/python" - >"$work/kept" <<'END'
import importlib.metadata as metadata
print("\n".join(sorted({f"{found.name}=={found.version}" for found in metadata.distributions() if found.name.startswith(("jax", "numpy", "ml_dtypes", "torch"))})))
END
  if ! "$python" -m pip --python "$env/bin/python" install --quiet --disable-pip-version-check --no-cache-dir --no-index \
    --find-links "$wheels" --constraint "$work/kept" $lacking >"$folder/logs/install.log" 2>&1; then
    grep -v '^Looking' "$folder/logs/install.log" | tail -n 5
    die "not every package could be installed from $wheels (see above). On a machine with internet run \
benchmarks/accelerator_wheels.sh, and bring its folder here; --wheels names another one"
  fi
fi

machine=$(timeout 120 "$env/bin/python" - 2>"$folder/logs/machine.log" <<'END'
import importlib.util, platform
import jax
first = jax.devices()[0]
peers = ",mamba_ssm" if importlib.util.find_spec("mamba_ssm") else ""
print(first.platform, f"ssmkit-bfloat16{peers}", f"{len(jax.devices())} x {first.device_kind}, jax {jax.__version__}, Python {platform.python_version()}", sep="|")
END
) || die "JAX finds no device: $(tail -n 3 "$folder/logs/machine.log")"
machine=$(tail -n 1 <<<"$machine")
IFS='|' read -r platform subjects described <<<"$machine"
say "$described"
[[ $platform != cpu || -n $rehearse ]] || die "JAX computes on the CPU here; --rehearse does so on purpose"
cores=$(nproc)
case $platform in
  tpu) workers=0 ;; # a TPU serves one process at a time
  cpu) workers=2 ;;
  *) workers=$((cores > 12 ? 6 : cores > 4 ? cores / 2 : 2)) ;;
esac

# size NAME PERCENT: the figures of a geometry. A peer that fails must not cost our own.
size() {
  local geometry=${rehearse:+tiny}
  geometry=${geometry:-$1}
  local rest=(-g "$geometry" "${sizes[@]}" --turn "$work/turns/of")
  bench "$1" "$2" accelerator -s "$subjects" "${rest[@]}"
  if (($? == 1)) && [[ $subjects == *,* ]]; then
    bench "$1-alone" "$2" accelerator -s "${subjects%%,*}" "${rest[@]}"
  fi
}

# together NAME..: several sizes. Their programs, which take longest, are compiled side by side. Then each measures alone,
# one after the other: none before all are ready, or 30 % of the budget is gone.
together() {
  local name processes=()
  exec 8>"$work/turns/of"
  flock 8
  for name in "$@"; do
    size "$name" 55 8>&- &
    processes+=($!)
  done
  while (($(find "$work/turns" -name 'ready-*' | wc -l) < $(jobs -r | wc -l) && SECONDS < budget * 30 / 100)); do
    sleep 1
  done
  exec 8>&-
  wait "${processes[@]}"
}

mkdir "$work/turns"
declare -A share=([130m]=18 [370m]=20 [780m]=22 [1.3b]=30 [2.7b]=60)
small=() # of these, the caches of all batches fit into a device's memory together
for name in "${wanted[@]}"; do
  [[ $platform == tpu || ! $name =~ ^(130m|370m|780m)$ ]] || small+=("$name")
done
for name in "${wanted[@]}"; do
  case $name in
    suite) bench suite 25 suite --workers "$workers" --seconds SECONDS_LEFT "${tested[@]}" ;;
    trace) bench trace 12 trace "${traced[@]}" ;;
    context) bench context 15 context -s ssmkit-bfloat16 "${flat[@]}" ;;
    train) bench train 15 train -s ssmkit "${trained[@]}" ;;
    *)
      if [[ " ${small[*]} " != *" $name "* ]]; then
        size "$name" "${share[$name]}"
      elif [[ $name == "${small[0]}" ]]; then
        together "${small[@]}"
      fi
      ;;
  esac
done

timeout 60 "$env/bin/python" -m benchmarks report "$folder" >"$folder/logs/tables.md" 2>"$folder/logs/report.log" ||
  miss "report: failed, see $folder/logs/report.log"
pack
say "figures in $folder, tables in $folder/logs/tables.md"
if [[ -s $work/missed ]]; then
  printf '\nNot done, or not to the end:\n'
  sed 's/^/  /' "$work/missed"
  exit 1
fi
