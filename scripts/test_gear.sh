#!/usr/bin/env bash
# What some tests are run with beside Python packages: machines of namespaces with an sshd each, a small Slurm. By apt-get,
# as far as that is there and allowed; a second server of S3 (s3rver) by npm, pinned to the last file by tests/gear/s3rver, into
# the user's cache. A test whose gear is missing is skipped and says so. No user needs any of it.
#
#   bash scripts/test_gear.sh [PACKAGE…]     nothing given: all of it. Always ends with status 0; starts no service.
set -uo pipefail

declare -A PROGRAM=(
  [openssh-server]=/usr/sbin/sshd [openssh-client]=ssh [iproute2]=ip [libfaketime]=/usr/lib/*/faketime/libfaketime.so.1
  [munge]=munged [slurmctld]=slurmctld [slurmd]=slurmd [slurm-client]=sbatch [chromium]=chromium
)
PATH="$PATH:/usr/sbin:/sbin"
[ $# -gt 0 ] || set -- openssh-server openssh-client iproute2 libfaketime munge slurmctld slurmd slurm-client s3rver

install_s3rver() {
  local here lock folder aside
  here="$(cd "$(dirname "${BASH_SOURCE[0]}")/../tests/gear/s3rver" && pwd)"
  lock="$(sha256sum "$here/package-lock.json" | cut -c 1-16)"
  folder="${XDG_CACHE_HOME:-$HOME/.cache}/llama_dyt/gear/s3rver-$lock"
  [ ! -d "$folder" ] || return 0
  command -v npm >/dev/null || { echo "not installed, so its tests are skipped: s3rver (no npm)" >&2; return 0; }
  mkdir -p "${folder%/*}" && aside="$(mktemp -d "$folder.XXXXXX")" || return 0
  cp "$here"/package*.json "$aside"
  if (cd "$aside" && timeout 90 npm ci --ignore-scripts --no-audit --no-fund --silent >&2); then
    mv -T "$aside" "$folder" 2>/dev/null || rm -rf "$aside"  # another was first
  else
    rm -rf "$aside"
    echo "not installed, so its tests are skipped: s3rver (npm ci failed)" >&2
  fi
}

missing=()
for package in "$@"; do
  [ "$package" != s3rver ] || { install_s3rver; continue; }
  program="${PROGRAM[$package]:-$package}"
  compgen -G "$program" >/dev/null || command -v "$program" >/dev/null || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

left_out() { echo "not installed, so the tests that need them are skipped: ${missing[*]} ($1)" >&2; exit 0; }
command -v apt-get >/dev/null || left_out "no apt-get"
[ "$(id -u)" = 0 ] || left_out "not root"
log="$(mktemp)"
# Debian's packages start their services, but where this program says that none may be (policy-rc.d, 101: forbidden).
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] && made= || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made=yes; } 2>/dev/null
trap '[ -z "$made" ] || rm -f "$policy"; rm -f "$log"' EXIT
if [ ! -e "$policy" ]; then left_out "services could not be kept from starting"; fi
# One by one: what one archive lacks need not keep the others away.
install() {
  DEBIAN_FRONTEND=noninteractive timeout 240 apt-get install -y -qq --no-install-recommends \
    -o DPkg::Lock::Timeout=120 "$1" >>"$log" 2>&1
}
timeout 120 apt-get update -qq >>"$log" 2>&1 || true
still=()
for package in "${missing[@]}"; do install "$package" || still+=("$package"); done
missing=("${still[@]}")
[ "${#missing[@]}" = 0 ] || left_out "$(tail -n 1 "$log")"
